"""What a set of verdicts says: a mean with its interval, a difference with its p-value, pass@k.

In: arrays `[items, samples]` of verdicts (0 or 1, or scores between). Out: floats in [0, 1]. Items
are the unit of chance: samples of one item are alike, so all resampling is over whole items (the
cluster bootstrap; Miller, "Adding error bars to evals", 2024, section 2.2). With `subjects`, one
an item, the average is the harmonic mean over subjects instead of the mean over items, and items
are resampled within their subject.

Shapes: I items, S samples, R resamples, M seeds.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evals.statistics.resampling import Average, Values, ends, exchange_p, resampled
from evals.statistics.student_t import quantile, two_sided

Z = 1.959963984540054  # the normal quantile of 0.975
EQUAL = 1e-12  # means of the same verdicts differ by less, whatever the order of their sum


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


def interval(correct: ArrayLike, *, subjects: Sequence[str] = (), seed: int = 0) -> Interval:
    """The average with the percentile interval of a cluster bootstrap over items.

    Where all items have the same mean (all right, all wrong, one item) a bootstrap would give an
    interval of no width; there it is Wilson's (1927) score interval on the number of items.

    Args:
        correct: `[items, samples]` or `[items]`, each in [0, 1].
        subjects: of the items, for the harmonic mean over subjects.
        seed: of the resampling.

    Raises:
        ValueError: no items, or a value outside of [0, 1].
    """
    per_item = _per_item(correct)
    average = Average(subjects, len(per_item))
    mean = float(average.of(per_item))
    if np.ptp(per_item) < EQUAL:
        low, high = wilson(float(per_item[0]), len(per_item))
        return Interval(mean, min(low, mean), max(high, mean))
    low, high = ends(resampled(per_item[None], average, seed))
    return Interval(mean, min(low, mean), max(high, mean))


def paired(
    first: ArrayLike, second: ArrayLike, *, subjects: Sequence[str] = (), seed: int = 0
) -> Difference:
    """Compares two checkpoints on the same items: is `first` better than `second`?

    The interval is a cluster bootstrap over the items' differences; p is that of the two-sided
    permutation test that exchanges the two on an item or not (for single verdicts: McNemar's, by
    simulation). Where all differences are the same, the interval reaches as far as Wilson's for "no
    item differs".

    Args:
        first: `[items, samples]` or `[items]`; the number of samples may differ from `second`'s.
        second: the same items in the same order.
        subjects: of the items, for the harmonic mean over subjects.
        seed: of the resampling and the exchanges.

    Raises:
        ValueError: different numbers of items, no items, or a value outside of [0, 1].
    """
    return paired_seeds([first], [second], subjects=subjects, seed=seed)


def paired_seeds(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    subjects: Sequence[str] = (),
    seed: int = 0,
) -> Difference:
    """Compares two ways of training, each with one or more seeds, on the same items.

    The items' means over the seeds go through the test of `paired`, so an item stays the unit of
    chance however many seeds answered it. What all items of a seed share is seen in the scatter of
    the seeds' own averages: its variance s^2 / M, for each side that has M > 1 seeds, is added to
    that of the items, and interval and p are those of a t-test with the degrees of freedom of Welch
    and Satterthwaite; p is not below that of the permutation test. s^2 holds some of the items'
    chance too, so the test errs towards seeing no difference. A side of one seed adds nothing: its
    scatter can't be known.

    Args:
        first: a seed an entry, each as in `paired`.
        second: the same; the number of seeds may differ.
        subjects: of the items, for the harmonic mean over subjects.
        seed: of the resampling and the exchanges.

    Raises:
        ValueError: as `paired`, or a side without a seed.
    """
    sides = [_seeds(side) for side in (first, second)]
    a, b = (side_MI.mean(axis=0) for side_MI in sides)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired test needs the same items in both")
    average = Average(subjects, len(a))
    both = np.stack([a, b])
    mean = float(np.subtract(*average.of(both)))
    if np.ptp(a - b) < EQUAL:
        reach = wilson(0.0, len(a))[1]
        low, high, spread = max(-1.0, mean - reach), min(1.0, mean + reach), reach / Z
    else:
        # Without subjects the difference of the averages is the average of the differences.
        drawn_R = resampled(both if subjects else (a - b)[None], average, seed)
        low, high = ends(drawn_R)
        low, high = min(low, mean), max(high, mean)
        spread = float(drawn_R.std())
    p = exchange_p(both, average, seed)
    scatters = [_scatter(average.of(side_MI)) for side_MI in sides]
    return _with_scatter(Difference(mean, low, high, p), spread, len(a), scatters)


def over_seeds(intervals: Sequence[Interval], count: int) -> Interval:
    """The mean of the scores of several seeds on the same `count` items, with its interval.

    More seeds do not shrink what comes from the items: the mean reach of the intervals. The
    scatter of the seeds is added to it as in `paired_seeds`.
    """
    means = np.array([each.mean for each in intervals])
    mean = float(means.mean())
    low, high = (mean + float(np.mean([e[i] - e.mean for e in intervals])) for i in (1, 2))
    given = Difference(mean, low, high, 0.0)
    widened = _with_scatter(given, (high - low) / (2 * Z), count, [_scatter(means)])
    return Interval(mean, max(0.0, widened.low), min(1.0, widened.high))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected so that 0.05 bounds the chance of any false finding.

    Holm (1979): the smallest times the number of tests, the next times one less, and so on.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def wilson(proportion: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion among `count` independent items."""
    shrink = 1 + Z**2 / count
    centre = (proportion + Z**2 / (2 * count)) / shrink
    half = Z / shrink * np.sqrt(proportion * (1 - proportion) / count + Z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def pass_at_k(correct: ArrayLike, k: int) -> Values:
    """Unbiased pass@k of every item, 1 - C(n-c, k) / C(n, k) (Chen et al., 2021, equation 1).

    Args:
        correct: `[items, samples]` of verdicts.
        k: 1 to the number of samples n.

    Raises:
        ValueError: another k.
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


def majority(correct: ArrayLike, answers: Sequence[Sequence[str]]) -> Values:
    """maj@n of every item: whether the most frequent answer is right.

    Samples without an answer ("") do not vote; an item where none does is wrong. Where several
    answers have the most votes, the share of those that are right: what drawing one of them would
    give on average. An answer is as right as its samples' verdicts say, as a rule all the same.

    Args:
        correct: `[items, samples]` of verdicts.
        answers: the samples' final answers, in the same places; equal strings are one vote.
    """
    verdicts = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    return np.array([_majority(*item) for item in zip(verdicts, answers, strict=True)])


def further(
    correct: ArrayLike, answers: Sequence[Sequence[str]] | None, *, subjects: Sequence[str] = ()
) -> dict[str, list[float]]:
    """The other metrics of several samples: name to [value, low, high].

    pass@k for k = 1, the powers of two up to n and n itself; maj@n where there are answers. Empty
    where an item has one sample.
    """
    verdicts = np.asarray(correct)
    n = verdicts.shape[1]
    if n == 1:
        return {}
    powers = {2**e for e in range(n.bit_length()) if 2**e <= n}
    scores = {f"pass@{k}": pass_at_k(verdicts, k) for k in sorted(powers | {n})}
    if answers is not None:
        scores[f"maj@{n}"] = majority(verdicts, answers)
    return {name: [*interval(each, subjects=subjects)] for name, each in scores.items()}


def _per_item(correct: ArrayLike) -> Values:
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"verdicts of shape {values.shape}; expected [items, samples] or [items]")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"verdicts from {values.min()} to {values.max()}; they lie in [0, 1]")
    return values if values.ndim == 1 else values.mean(axis=1)


def _seeds(side: Sequence[ArrayLike]) -> Values:
    if not side:
        raise ValueError("no seed on one side of the comparison; give at least one")
    rows = [_per_item(correct) for correct in side]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"seeds with {[len(row) for row in rows]} items; they need the same items")
    return np.stack(rows)


def _majority(verdicts: Values, answers: Sequence[str]) -> float:
    votes = Counter(answer for answer in answers if answer)
    most = max(votes.values(), default=0)
    tied = [answer for answer, count in votes.items() if count == most]
    right = [
        np.mean([v for v, a in zip(verdicts, answers, strict=True) if a == answer])
        for answer in tied
    ]
    return float(np.mean(right)) if right else 0.0


def _scatter(averages_M: Values) -> tuple[float, int]:
    """Variance of the mean of several seeds' averages, and its degrees of freedom."""
    seeds = len(averages_M)
    return (float(averages_M.var(ddof=1)) / seeds, seeds - 1) if seeds > 1 else (0.0, 0)


def _with_scatter(
    found: Difference, spread: float, count: int, scatters: Sequence[tuple[float, int]]
) -> Difference:
    """Widens an interval of standard error `spread` over `count` items by the scatter of seeds."""
    parts = [(variance, freedom) for variance, freedom in scatters if variance > 0]
    if not parts:
        return found
    seeds = sum(variance for variance, _ in parts)
    parts.append((spread**2, max(1, count - 1)))
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / free for variance, free in parts)
    wider = quantile(freedom) / Z
    down = wider * float(np.hypot(found.difference - found.low, Z * seeds**0.5))
    up = wider * float(np.hypot(found.high - found.difference, Z * seeds**0.5))
    p = max(found.p, two_sided(abs(found.difference) / total**0.5, freedom))
    return Difference(found.difference, found.difference - down, found.difference + up, p)
