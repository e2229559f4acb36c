"""Values per example, stored beside a packed store: `statistic-NAME.npy` in its directory.

An objective that compares the model with its base, for instance, needs the log-probability of each
example under the base. It is computed once per store, and all runs share it.

Shapes: E examples of the store, in the order of its rows and, within a row, of their segments;
N rows, S tokens per row.
"""

from pathlib import Path

import numpy as np

from otr.hints import did_you_mean
from otr.training.store.read import PackedStore
from otr.training.store.write import FileToPublish, read_index


def write_statistic(path: str, name: str, values: np.ndarray) -> None:
    """Store a value per example.

    Args:
        path: of a complete store, a path or URI.
        name: of the statistic, such as "base_log_probability".
        values: float, [E].

    Raises:
        ValueError: there is not one value per example, or the name is no file name.
    """
    if not name.isidentifier():
        raise ValueError(f"statistic {name!r}: use letters, digits and _")
    count = sum(part.examples for part in read_index(path).parts)
    if values.shape != (count,):
        raise ValueError(
            f"statistic {name!r} has the shape {values.shape}: {path} has {count} examples"
        )
    with FileToPublish(f"{path}/{_file(name)}") as file:
        np.save(file, values.astype(np.float32))


class Statistic:
    """A stored value per example of a store on this host.

    Args:
        store: the store.
        name: of the statistic.

    Raises:
        ValueError: the store has none of this name.
    """

    def __init__(self, store: PackedStore, name: str) -> None:
        path = store.directory / _file(name)
        if not path.exists():
            hint = did_you_mean(name, stored_statistics(store.directory))
            raise ValueError(f"{store.directory} has no statistic {name!r}: {hint}")
        self.values = np.load(path, mmap_mode="r")
        self.ends = np.cumsum(store.examples_per_row())

    def of_tokens(self, numbers: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
        """Return the value of each token's example; 0 where there is none. [N, S].

        Args:
            numbers: of the rows, [N].
            segment_ids: of the rows, [N, S].
        """
        first = np.where(numbers > 0, self.ends[numbers - 1], 0)
        examples = first[:, None] + np.maximum(segment_ids, 1) - 1
        return np.where(segment_ids > 0, self.values[examples], np.float32(0))


def stored_statistics(directory: Path) -> list[str]:
    """Return the names of the statistics of a store on this host."""
    prefix, suffix = _file("\0").split("\0")
    files = sorted(directory.glob(f"{prefix}*{suffix}"))
    return [file.name.removeprefix(prefix).removesuffix(suffix) for file in files]


def _file(name: str) -> str:
    return f"statistic-{name}.npy"
