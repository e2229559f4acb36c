"""Averages of items, and what chance does to them: the bootstrap, and exchanges of two models.

In: per-item values `[..., I]`. Out: averages, and samples of them. Items with the same value are
drawn together: how many of them a resample has is multinomial, how many of them an exchange turns
around binomial. That is the same chance as item by item, at a cost that grows with the number of
different values instead of items. Within subjects the bootstrap is the Bayesian one (Rubin, 1981)
with one more item: subjects are often small, and all right or all wrong.

Shapes: I items, R resamples, N one row (a difference an item) or two (one a model), G groups of
items (subjects, or all), D different values in a group.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
HARMONIC_FLOOR = 0.01
"""Added to each subject's accuracy, so that one of 0 does not make the harmonic mean 0 (Kazemi et
al., "BIG-Bench Extra Hard", 2025)."""
_CHUNK = 1000

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


class Average:
    """The mean over items, or with `subjects`, one an item, the harmonic mean over subjects."""

    def __init__(self, subjects: Sequence[str], count: int) -> None:
        if subjects and len(subjects) != count:
            raise ValueError(f"{count} items and {len(subjects)} subjects: one an item")
        names, subject_of = np.unique(np.array(subjects, dtype=str), return_inverse=True)
        self.harmonic = len(names) > 0
        self.groups = [np.flatnonzero(subject_of == n) for n in range(len(names))]
        if not self.harmonic:
            self.groups = [np.arange(count)]

    def of(self, values_XI: Values) -> Values:
        """`[..., items]` to `[...]`."""
        return self.of_groups(np.stack([values_XI[..., g].mean(-1) for g in self.groups], axis=-1))

    def of_groups(self, means_XG: Values) -> Values:
        """From the means of the groups."""
        if not self.harmonic:
            return means_XG[..., 0]
        harmonic = means_XG.shape[-1] / (1 / (means_XG + HARMONIC_FLOOR)).sum(axis=-1)
        return np.minimum(1.0, harmonic)


def resampled(rows_NI: Values, average: Average, seed: int) -> Values:
    """Averages [R] of resampled items; of two rows the difference of their averages."""
    generator = np.random.default_rng(seed)

    def drawn_means(values_ND: Values, counts_D: Counts) -> Values:
        total = counts_D.sum()
        if not average.harmonic:
            return generator.multinomial(total, counts_D / total, size=_CHUNK) @ values_ND.T / total
        # A subject that is all right or all wrong would have no chance in it: one more item, spread
        # over all outcomes (Beta(c + 1/2, n - c + 1/2) for single verdicts).
        corners_NC = np.array(list(product((0.0, 1.0), repeat=len(values_ND)))).T
        prior_C = np.full(corners_NC.shape[1], 1 / corners_NC.shape[1])
        weights_RD = generator.dirichlet([*counts_D, *prior_C], size=_CHUNK)
        return weights_RD @ np.concatenate([values_ND, corners_NC], axis=1).T

    averages_RN = _repeated(rows_NI, average, drawn_means)
    return averages_RN[:, 0] - averages_RN[:, 1] if len(rows_NI) == 2 else averages_RN[:, 0]


def ends(drawn_R: Values) -> tuple[float, float]:
    """The middle 95 % of what was drawn."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn_R, [tail, 1 - tail])
    return float(low), float(high)


def exchange_p(pair_2I: Values, average: Average, seed: int) -> float:
    """How often exchanging the two models on each item or not gives a difference as large."""
    generator = np.random.default_rng(seed)

    def exchanged_means(values_2D: Values, counts_D: Counts) -> Values:
        turned_RD = generator.binomial(counts_D, 0.5, size=(_CHUNK, len(counts_D)))
        sums_R2 = (counts_D - turned_RD) @ values_2D.T + turned_RD @ values_2D[::-1].T
        return sums_R2 / counts_D.sum()

    averages_R2 = _repeated(pair_2I, average, exchanged_means)
    observed = np.abs(np.subtract(*average.of(pair_2I)))
    as_extreme = int((np.abs(np.subtract(*averages_R2.T)) >= observed - 1e-12).sum())
    return (1 + as_extreme) / (1 + len(averages_R2))


def _repeated(
    rows_NI: Values, average: Average, means_of: Callable[[Values, Counts], Values]
) -> Values:
    """Averages [R, N] of what `means_of` makes, again and again, of the values of each group."""
    groups = [np.unique(rows_NI[:, group], axis=1, return_counts=True) for group in average.groups]
    chunks = [
        average.of_groups(np.stack([means_of(*group) for group in groups], axis=-1))
        for _ in range(0, RESAMPLES, _CHUNK)
    ]
    return np.concatenate(chunks)
