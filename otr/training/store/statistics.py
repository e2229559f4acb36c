"""A value per token, stored in the directory of a packed store: `statistic-NAME-00000.npy`, ...

An objective that compares with the model before training needs the log-probability of each target
under it. It is computed once per store and model, and all runs share it. Each file has a block of
BLOCK_ROWS rows, so that ranks share the work, and work that was interrupted goes on.

Shapes: N rows, S tokens per row.
"""

import numpy as np
from jaxtyping import Float, Int

from otr.training.store.layout import Index
from otr.training.store.read import PackedStore
from otr.training.store.write import FileToPublish, names

BLOCK_ROWS = 256


def block_rows(index: Index, block: int) -> range:
    """Return the numbers of a block's rows."""
    return range(block * BLOCK_ROWS, min(index.rows, (block + 1) * BLOCK_ROWS))


def missing_blocks(path: str, index: Index, name: str) -> list[int]:
    """Return the blocks of a statistic that are not stored yet.

    Args:
        path: of the store, a path or URI.
        index: of the store.
        name: of the statistic.
    """
    stored = names(path)
    count = -(-index.rows // BLOCK_ROWS)
    return [block for block in range(count) if _file(name, block) not in stored]


def write_block(path: str, name: str, block: int, values: Float[np.ndarray, "N S"]) -> None:
    """Store a block of a statistic; it appears complete or not at all."""
    assert name.isidentifier(), name
    with FileToPublish(f"{path}/{_file(name, block)}") as file:
        np.save(file, values.astype(np.float32))


class Statistic:
    """A stored value per token of a store on this host.

    Args:
        store: the store.
        name: of the statistic, of which all blocks are stored.
    """

    def __init__(self, store: PackedStore, name: str) -> None:
        self.store, self.name = store, name
        self._blocks: dict[int, np.ndarray] = {}

    def of_rows(self, numbers: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N S"]:
        """Return the values of some rows' tokens.

        Raises:
            ValueError: a stored block does not fit the store.
        """
        return np.stack([self._block(int(n) // BLOCK_ROWS)[n % BLOCK_ROWS] for n in numbers])

    def _block(self, block: int) -> np.ndarray:
        if block not in self._blocks:
            file = self.store.directory / _file(self.name, block)
            index = self.store.index
            values = np.load(file, mmap_mode="r")
            if values.shape != (len(block_rows(index, block)), index.sequence_length):
                raise ValueError(f"{file} is damaged: remove it, and it is computed again")
            self._blocks[block] = values
        return self._blocks[block]


def _file(name: str, block: int) -> str:
    return f"statistic-{name}-{block:05d}.npy"
