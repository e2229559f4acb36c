"""Intervals of a proportion: of single verdicts, and of items with several samples.

Wilson's interval covers a proportion in .95 of the cases on average, but in as little as .84 near 0
and 1. `score_interval` therefore has a slightly larger quantile, and an end near 0 or 1 that is at
most that of the exact one-sided interval. The two constants were chosen so that its coverage, by
exact enumeration, is at least .92 and on average between .94 and .96 for n = 10, 30 and 100;
`python -m tests.benchmarks.coverage` prints it.

Shapes: I items.
"""

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # the normal distribution's 0.975 quantile
WIDER_Z = 1.98
ONE_SIDED = 0.078
PRIOR_ITEMS = 2
"""Added to the items with the largest possible variance, since the variance of few is uncertain."""


def wilson(proportion: float, count: float, z: float = Z) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a proportion among `count` independent items.

    Its confidence is 95 % with the default quantile `z`.
    """
    shrink = 1 + z**2 / count
    centre = (proportion + z**2 / (2 * count)) / shrink
    half = z / shrink * np.sqrt(proportion * (1 - proportion) / count + z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def score_interval(proportion: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a proportion among `count` independent items.

    Args:
        proportion: the mean, in [0, 1].
        count: number of items, which need not be an integer.
    """
    return _low(proportion, count), 1 - _low(1 - proportion, count)


def _low(proportion: float, count: float) -> float:
    if proportion in (0, 1):  # Wilson's own ends, which suffice there
        return wilson(proportion, count)[0]
    from scipy.special import betaincinv  # 0.2 s

    right = proportion * count
    exact = float(betaincinv(right, count - right + 1, ONE_SIDED))
    return min(exact, wilson(proportion, count, WIDER_Z)[0])


def effective_count(per_item_I: NDArray[np.float64]) -> float:
    """Return the number of independent verdicts whose mean varies as much as that of the items.

    For single verdicts it is I. For means of several samples it is larger, the less the more the
    samples of an item agree; if all items have the same mean of 0 or 1, it is I, too. Source:
    the effective sample size of Korn and Graubard (1998), here with `PRIOR_ITEMS` items more.
    """
    count, mean = len(per_item_I), float(per_item_I.mean())
    largest = mean * (1 - mean)
    if largest <= 0:
        return float(count)
    variance = (count * per_item_I.var() + PRIOR_ITEMS * largest) / (count + PRIOR_ITEMS)
    return count * largest / float(variance)
