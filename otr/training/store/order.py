"""Which packed row is trained when: a function of the seed and of the step alone.

Training takes an endless sequence of rows; row i of step t is number t * G + i of it. The state of
a run in its data is therefore its step: a resumed run, on whatever number of workers, goes on with
the same rows.

Without weights the sequence is one permutation of all rows per epoch. With weights it is cut into
blocks of BLOCK rows. Each block has its share of each source, in an order of its own; and each
source gives its rows in one permutation per pass over it.

A permutation is stratified: the rows are cut into STRATA stretches, and every STRATA consecutive
rows of the permutation come one from each, in random order. So each part of training sees the
whole corpus evenly, also of a sorted file.

Shapes: G rows per step, B rows per micro-batch of one worker.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from otr.config import MOST_SOURCES

BLOCK = 256  # rows in which the weights of the sources are held
STRATA = 256

_NONE = -1


class Order:
    """The order of the rows of a store.

    Args:
        rows: number of rows of each source; the rows of a source have consecutive numbers, and the
            sources follow each other.
        seed: of the permutations.
        weights: share of each source among the trained rows; None: all rows once per epoch.
    """

    def __init__(
        self, rows: Sequence[int], seed: int, weights: Sequence[float] | None = None
    ) -> None:
        assert weights is None or len(rows) <= MOST_SOURCES, "DataConfig allows no more"
        self.seed = seed
        if weights is None:
            rows, weights = [sum(rows)], [1.0]
        self.rows = np.array(rows, np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.rows)[:-1]])
        self.weights = np.array(weights, np.float64) / sum(weights)
        self._permutation = lru_cache(maxsize=2 * len(rows))(self._make_permutation)
        self._block = lru_cache(maxsize=2)(self._make_block)

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """Return the numbers of the rows at some places of the sequence.

        Args:
            places: [N], from 0.
        """
        found = np.empty(len(places), np.int64)
        for block in np.unique(places // BLOCK):
            inside = places // BLOCK == block
            found[inside] = self._block(int(block))[places[inside] % BLOCK]
        return found

    def _make_block(self, block: int) -> np.ndarray:
        """Return the numbers of the rows of a block, in order, [BLOCK]."""
        before, after = self._taken(block), self._taken(block + 1)
        # Which source comes when; each gives its rows in its own order.
        sources = np.repeat(np.arange(len(self.rows)), after - before)
        if len(self.rows) > 1:
            sources = np.random.default_rng([self.seed, 1, block]).permutation(sources)
        found = np.empty(BLOCK, np.int64)
        for source in range(len(self.rows)):
            numbers = np.arange(before[source], after[source])
            found[sources == source] = self._of_source(source, numbers)
        return found

    def _taken(self, block: int) -> np.ndarray:
        """Return how many rows of each source the blocks before this one have."""
        taken = np.floor(self.weights * block * BLOCK).astype(np.int64)
        largest = int(self.weights.argmax())
        taken[largest] += block * BLOCK - taken.sum()  # what rounding down leaves
        return taken

    def _of_source(self, source: int, numbers: np.ndarray) -> np.ndarray:
        """Return the row numbers of the `numbers`-th rows that a source gives."""
        count = self.rows[source]
        found = np.empty(len(numbers), np.int64)
        for epoch in np.unique(numbers // count):
            inside = numbers // count == epoch
            found[inside] = self._permutation(source, int(epoch))[numbers[inside] % count]
        return self.first[source] + found

    def _make_permutation(self, source: int, epoch: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, 0, source, epoch])
        count = int(self.rows[source])
        strata = min(STRATA, count)
        bounds = np.arange(strata + 1) * count // strata
        rows = bounds[:-1, None] + np.arange(-(-count // strata))  # a line per stratum
        rows[rows >= bounds[1:, None]] = _NONE  # strata differ by one row
        dealt = random.permuted(random.permuted(rows, axis=1).T, axis=1).ravel()
        return dealt[dealt != _NONE]


def places_of(
    step: int, micro_batch: int, rank: int, *, world: int, batch: int, micro: int
) -> np.ndarray:
    """Return the places in the sequence of one worker's micro-batch, [B].

    Args:
        step: optimizer step, from 0.
        micro_batch: number of the micro-batch within the step.
        rank: of the worker.
        world: number of workers.
        batch: rows per step, G.
        micro: rows per micro-batch of one worker, B.
    """
    first = step * batch + (micro_batch * world + rank) * micro
    return np.arange(first, first + micro, dtype=np.int64)
