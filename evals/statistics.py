"""What a set of verdicts says: a mean with its interval, a difference with its p-value, pass@k.

In: arrays `[items, samples]` of verdicts (0 or 1, or scores between). Out: floats in [0, 1]. Items
are the unit of chance: samples of one item are alike, so all resampling is over whole items (the
cluster bootstrap; Miller, "Adding error bars to evals", 2024, section 2.2).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
Z = 1.959963984540054  # the normal quantile of 0.975
RESAMPLES = 10_000
_CHUNK = 500


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of the first minus mean of the second, its 95 % interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


def interval(correct: ArrayLike, *, seed: int = 0) -> Interval:
    """Mean over items with the percentile interval of a cluster bootstrap over items.

    Where all items have the same mean (all right, all wrong, one item) a bootstrap would give an
    interval of no width; there it is Wilson's (1927) score interval on the number of items.

    Args:
        correct: `[items, samples]` or `[items]`, each in [0, 1].
        seed: of the resampling.

    Raises:
        ValueError: no items, or a value outside of [0, 1].
    """
    per_item = _per_item(correct)
    mean = float(per_item.mean())
    if np.ptp(per_item) == 0:
        return Interval(mean, *wilson(mean, len(per_item)))
    low, high = _bootstrap(per_item, seed)
    return Interval(mean, low, high)


def paired(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Difference:
    """Compares two checkpoints on the same items: is `first` better than `second`?

    The interval is a cluster bootstrap over the items' differences; p is that of the two-sided
    sign-flip permutation test on them (for single verdicts: McNemar's, by simulation). Where all
    differences are the same, the interval reaches as far as Wilson's for "no item differs".

    Args:
        first: `[items, samples]` or `[items]`; the number of samples may differ from `second`'s.
        second: the same items in the same order.
        seed: of the resampling and the sign flips.

    Raises:
        ValueError: different numbers of items, no items, or a value outside of [0, 1].
    """
    a, b = _per_item(first), _per_item(second)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired test needs the same items in both")
    differences = a - b
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        reach = wilson(0.0, len(a))[1]
        low, high = max(-1.0, mean - reach), min(1.0, mean + reach)
    else:
        low, high = _bootstrap(differences, seed)
    return Difference(mean, low, high, _sign_flip_p(differences, seed))


def pass_at_k(correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased pass@k of every item, 1 - C(n-c, k) / C(n, k) (Chen et al., 2021, equation 1).

    Args:
        correct: `[items, samples]` of verdicts.
        k: 1 to the number of samples n.

    Returns:
        `[items]` in [0, 1]; its mean is the score, and `interval` takes it as it is.
    """
    verdicts = np.atleast_2d(np.asarray(correct, dtype=bool))
    n = verdicts.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; pass@k needs 1 <= k <= {n}, the number of samples an item")
    wrong = n - verdicts.sum(axis=1)
    none_right = np.ones(len(verdicts))
    for drawn in range(k):
        none_right *= np.maximum(wrong - drawn, 0) / (n - drawn)
    return 1.0 - none_right


def avg_at_n(correct: ArrayLike) -> NDArray[np.float64]:
    """Mean verdict of every item over its n samples: `[items, samples]` to `[items]`."""
    return _per_item(correct)


def wilson(proportion: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion among `count` independent items."""
    shrink = 1 + Z**2 / count
    centre = (proportion + Z**2 / (2 * count)) / shrink
    half = Z / shrink * np.sqrt(proportion * (1 - proportion) / count + Z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _per_item(correct: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"verdicts of shape {values.shape}; expected [items, samples] or [items]")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"verdicts from {values.min()} to {values.max()}; they lie in [0, 1]")
    return values if values.ndim == 1 else values.mean(axis=1)


def _bootstrap(per_item: NDArray[np.float64], seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    count = len(per_item)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        chosen = generator.integers(count, size=(_CHUNK, count), dtype=np.int32)
        means[start : start + _CHUNK] = per_item[chosen].mean(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _sign_flip_p(differences: NDArray[np.float64], seed: int) -> float:
    moved = differences[differences != 0]
    generator = np.random.default_rng(seed)
    observed = abs(moved.sum())
    as_extreme = 0
    for _ in range(0, RESAMPLES, _CHUNK):
        signs = generator.integers(2, size=(_CHUNK, len(moved)), dtype=np.int8) * 2 - 1
        as_extreme += int((np.abs(signs @ moved) >= observed - 1e-12).sum())
    return (1 + as_extreme) / (1 + RESAMPLES)
