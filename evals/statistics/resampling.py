"""Averages over items, and their sampling distributions: the bootstrap and the permutation test.

Items with equal values are drawn together: the number of them in a resample is multinomial, and the
number that a permutation swaps is binomial. The distribution is the same as item by item, but the
cost grows with the number of distinct values instead of the number of items. Within subjects the
bootstrap is the Bayesian one (Rubin, 1981) with one extra item, because subjects are often small,
and all right or all wrong.

Shapes: I items, R resamples, N value sets (1: differences per item; 2: one per model), G groups of
items (one per subject, or one of all), D distinct values in a group.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
HARMONIC_FLOOR = 0.01
"""Added to the accuracy of each subject, so that one 0 does not make the harmonic mean 0 (Kazemi et
al., "BIG-Bench Extra Hard", 2025)."""
_CHUNK = 1000

Values = NDArray[np.float64]
Counts = NDArray[np.int64]


class Average:
    """Mean over items; with `subjects`, one per item, the harmonic mean over subjects."""

    def __init__(self, subjects: Sequence[str], num_items: int) -> None:
        if subjects and len(subjects) != num_items:
            raise ValueError(f"{num_items} items and {len(subjects)} subjects; give one per item")
        names, subject_of = np.unique(np.array(subjects, dtype=str), return_inverse=True)
        self.harmonic = len(names) > 0
        self.groups = [np.flatnonzero(subject_of == n) for n in range(len(names))]
        if not self.harmonic:
            self.groups = [np.arange(num_items)]

    def over_items(self, values_XI: Values) -> Values:
        """Average the last axis, `[..., items]` to `[...]`."""
        means = [values_XI[..., group].mean(-1) for group in self.groups]
        return self.over_groups(np.stack(means, axis=-1))

    def over_groups(self, means_XG: Values) -> Values:
        """Average means of groups, `[..., groups]` to `[...]`."""
        if not self.harmonic:
            return means_XG[..., 0]
        harmonic = means_XG.shape[-1] / (1 / (means_XG + HARMONIC_FLOOR)).sum(axis=-1)
        return np.minimum(1.0, harmonic)


def bootstrap(values_NI: Values, average: Average, seed: int) -> Values:
    """Return averages [R] of resampled items; for two value sets, differences of averages."""
    generator = np.random.default_rng(seed)

    def draw_means(values_ND: Values, counts_D: Counts) -> Values:
        total = counts_D.sum()
        if not average.harmonic:
            return generator.multinomial(total, counts_D / total, size=_CHUNK) @ values_ND.T / total
        # A subject that is all right or all wrong would not vary. One extra item, spread over all
        # outcomes, lets it (Beta(c + 1/2, n - c + 1/2) for single verdicts).
        corners_NC = np.array(list(product((0.0, 1.0), repeat=len(values_ND)))).T
        prior_C = np.full(corners_NC.shape[1], 1 / corners_NC.shape[1])
        weights_RD = generator.dirichlet([*counts_D, *prior_C], size=_CHUNK)
        return weights_RD @ np.concatenate([values_ND, corners_NC], axis=1).T

    averages_RN = _draw_averages(values_NI, average, draw_means)
    return averages_RN[:, 0] - averages_RN[:, 1] if len(values_NI) == 2 else averages_RN[:, 0]


def quantiles(drawn_R: Values) -> tuple[float, float]:
    """Return the ends of the middle 95 % of `drawn_R`."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn_R, [tail, 1 - tail])
    return float(low), float(high)


def permutation_p(values_2I: Values, average: Average, seed: int) -> float:
    """Return the two-sided p-value of swapping the two models on each item with probability 1/2."""
    generator = np.random.default_rng(seed)

    def draw_means(values_2D: Values, counts_D: Counts) -> Values:
        swapped_RD = generator.binomial(counts_D, 0.5, size=(_CHUNK, len(counts_D)))
        sums_R2 = (counts_D - swapped_RD) @ values_2D.T + swapped_RD @ values_2D[::-1].T
        return sums_R2 / counts_D.sum()

    averages_R2 = _draw_averages(values_2I, average, draw_means)
    observed = np.abs(np.subtract(*average.over_items(values_2I)))
    as_extreme = int((np.abs(np.subtract(*averages_R2.T)) >= observed - 1e-12).sum())
    return (1 + as_extreme) / (1 + len(averages_R2))


def _draw_averages(
    values_NI: Values, average: Average, draw_means: Callable[[Values, Counts], Values]
) -> Values:
    """Return averages [R, N], from means that `draw_means` draws for each group in chunks of R."""
    groups = [
        np.unique(values_NI[:, group], axis=1, return_counts=True) for group in average.groups
    ]
    chunks = [
        average.over_groups(np.stack([draw_means(*group) for group in groups], axis=-1))
        for _ in range(0, RESAMPLES, _CHUNK)
    ]
    return np.concatenate(chunks)
