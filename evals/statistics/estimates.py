"""Means, intervals, paired tests and pass@k over the verdicts of one benchmark.

Verdicts are arrays `[items, samples]` of 0 or 1, or of scores between. Averages lie in [0, 1],
differences in [-1, 1]; with `bounded=False`, values may be any numbers. Samples of one item are
correlated, so items are the unit of resampling (the cluster bootstrap; Miller, "Adding error bars
to evals", 2024, section 2.2). With `subjects`, one per item, the average is the harmonic mean over
subjects instead of the mean over items, and items are resampled within their subject.

Shapes: I items, S samples, R resamples, M seeds.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evals.statistics.proportions import Z, effective_count, score_interval, wilson
from evals.statistics.resampling import Average, Values, bootstrap, permutation_p, quantiles

EQUAL = 1e-12  # above the rounding error of a mean, which depends on the order of summation


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


class _SeedVariance(NamedTuple):
    """Variance of the mean over seeds, and its degrees of freedom."""

    variance: float
    freedom: int


def interval(
    correct: ArrayLike, *, subjects: Sequence[str] = (), bounded: bool = True, seed: int = 0
) -> Interval:
    """Return the average with its 95 % interval; items are the independent units.

    The interval of a mean over items in [0, 1] is `proportions.score_interval`, with the number of
    single verdicts that would vary as much as the items do. That of a harmonic mean over subjects,
    and of values without bounds, has the percentiles of a cluster bootstrap over items.

    Args:
        correct: `[items, samples]` or `[items]`, each in [0, 1].
        subjects: subject of each item, for the harmonic mean over subjects.
        bounded: whether values lie in [0, 1]; otherwise they may be any finite numbers.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no items, or a value is outside its range.
    """
    per_item = _per_item(correct, bounded)
    average = Average(subjects, len(per_item))
    mean = float(average.over_items(per_item))
    if bounded and not subjects:
        low, high = score_interval(float(per_item.mean()), effective_count(per_item))
    elif np.ptp(per_item) < EQUAL:
        if not bounded:
            return Interval(mean, mean, mean)
        low, high = wilson(float(per_item[0]), len(per_item))
    else:
        low, high = quantiles(bootstrap(per_item[None], average, seed))
    return Interval(mean, min(low, mean), max(high, mean))


def standard_error(low: float, high: float) -> float:
    """Return the standard error whose normal 95 % interval is as wide as the given one.

    Unlike the sample's standard deviation over the root of the number of items, it is not 0 if all
    answers are right, or all are wrong.
    """
    return (high - low) / (2 * Z)


def paired(
    first: ArrayLike, second: ArrayLike, *, subjects: Sequence[str] = (), seed: int = 0
) -> Difference:
    """Compare two checkpoints on the same items; a positive difference favors `first`.

    The interval is a cluster bootstrap over the differences per item. p is from the two-sided
    permutation test that swaps the two checkpoints on each item with probability 1/2; for single
    verdicts that is McNemar's test, simulated. If all differences are equal, the interval has the
    width of Wilson's for "no item differs".

    Args:
        first: `[items, samples]` or `[items]`; the number of samples may differ from `second`'s.
        second: verdicts on the same items in the same order.
        subjects: subject of each item, for the harmonic mean over subjects.
        seed: seed of the bootstrap and the permutations.

    Raises:
        ValueError: the numbers of items differ, there are no items, or a value is outside [0, 1].
    """
    return paired_seeds([first], [second], subjects=subjects, seed=seed)


def paired_seeds(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike],
    *,
    subjects: Sequence[str] = (),
    bounded: bool = True,
    seed: int = 0,
) -> Difference:
    """Compare two ways of training on the same items, each with one or more seeds.

    Each item's mean over the seeds enters the test of `paired`, so items remain the unit of
    resampling however many seeds there are. Effects that all items of a seed share show up as
    scatter between the averages of the seeds. For each side with M > 1 seeds, the variance s^2 / M
    of that scatter is added to the variance from the items; the interval and p are then those of a
    t-test with Welch-Satterthwaite degrees of freedom, and p is never below that of the permutation
    test. Part of s^2 comes from the items, so the test is conservative. A side with one seed adds
    nothing, because its scatter is unknown.

    Args:
        first: one entry per seed, each as in `paired`.
        second: the same; the number of seeds may differ.
        subjects: subject of each item, for the harmonic mean over subjects.
        bounded: as in `interval`.
        seed: seed of the bootstrap and the permutations.

    Raises:
        ValueError: as in `paired`, or a side has no seed.
    """
    sides = [_means_by_seed(side, bounded) for side in (first, second)]
    a, b = (side_MI.mean(axis=0) for side_MI in sides)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired test needs the same items in both")
    average = Average(subjects, len(a))
    both = np.stack([a, b])
    mean = float(np.subtract(*average.over_items(both)))
    if np.ptp(a - b) < EQUAL:
        reach = wilson(0.0, len(a))[1] if bounded else 0.0
        low, high, standard_error = mean - reach, mean + reach, reach / Z
        if bounded:
            low, high = max(-1.0, low), min(1.0, high)
    else:
        # Without subjects the difference of the averages is the average of the differences.
        means_R = bootstrap(both if subjects else (a - b)[None], average, seed)
        low, high = quantiles(means_R)
        low, high = min(low, mean), max(high, mean)
        standard_error = float(means_R.std())
    found = Difference(mean, low, high, permutation_p(both, average, seed))
    seed_variances = [_seed_variance(average.over_items(side_MI)) for side_MI in sides]
    return _add_seed_variance(found, standard_error, len(a), seed_variances)


def interval_over_seeds(
    intervals: Sequence[Interval], num_items: int, *, bounded: bool = True
) -> Interval:
    """Return the mean score of several seeds on the same items, with its interval.

    More seeds do not reduce the uncertainty from the items, so the interval starts from the mean
    half-widths of the seeds' intervals. The scatter between seeds is added as in `paired_seeds`.
    Scores are not negative, and at most 1 if they are `bounded`.
    """
    means_M = np.array([each.mean for each in intervals])
    mean = float(means_M.mean())
    low, high = (mean + float(np.mean([e[i] - e.mean for e in intervals])) for i in (1, 2))
    found = Difference(mean, low, high, 0.0)
    standard_error = (high - low) / (2 * Z)
    widened = _add_seed_variance(found, standard_error, num_items, [_seed_variance(means_M)])
    high = min(1.0, widened.high) if bounded else widened.high
    return Interval(mean, max(0.0, widened.low), high)


def ratio_values(sums: ArrayLike, counts: ArrayLike) -> Values:
    """Return one value per item whose mean is the ratio of the totals, sum(sums) / sum(counts).

    The other functions then give the ratio's interval and test: the variance of the mean of these
    values is that of the ratio by the delta method (Cochran, "Sampling techniques", 1977, 6.4).

    Args:
        sums: of a quantity over the parts of each item, such as the NLL of an example's tokens.
        counts: number of parts of each item.
    """
    sums_I, counts_I = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    ratio = sums_I.sum() / counts_I.sum()
    return ratio + (sums_I - ratio * counts_I) / counts_I.mean()


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) corrected p-values, which bound the family-wise error rate.

    The smallest p-value is multiplied by the number of tests, the next by one less, and so on.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def pass_at_k(correct: ArrayLike, k: int) -> Values:
    """Return the unbiased pass@k of each item, 1 - C(n-c, k) / C(n, k).

    Source: Chen et al., 2021, equation 1; n is the number of samples, c of those that are right.

    Args:
        correct: `[items, samples]` of verdicts.
        k: from 1 to the number of samples.

    Raises:
        ValueError: k is outside that range.
    """
    verdicts = np.atleast_2d(np.asarray(correct, dtype=bool))
    n = verdicts.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; pass@k needs 1 <= k <= {n}, the number of samples per item")
    wrong = n - verdicts.sum(axis=1)
    all_wrong = np.ones(len(verdicts))
    for drawn in range(k):
        all_wrong *= np.maximum(wrong - drawn, 0) / (n - drawn)
    return 1.0 - all_wrong


def majority(correct: ArrayLike, answers: Sequence[Sequence[str]]) -> Values:
    """Return maj@n of each item: 1 if the most frequent answer is right, else 0.

    Samples without an answer ("") do not vote; an item without votes scores 0. If several answers
    have the most votes, the score is the fraction of them that are right, the expectation of
    choosing one at random. Samples with equal answers normally have equal verdicts; if they do not,
    the answer counts with the mean of them.

    Args:
        correct: `[items, samples]` of verdicts.
        answers: final answer of each sample, `[items][samples]`; equal strings are one vote.
    """
    verdicts = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    return np.array([_majority(*item) for item in zip(verdicts, answers, strict=True)])


def multi_sample_metrics(
    correct: ArrayLike, answers: Sequence[Sequence[str]] | None, *, subjects: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Return pass@k and, if there are answers, maj@n, as name to [value, low, high].

    k is 1, each power of two up to the number of samples n, and n itself. With one sample per item
    the result is empty.
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


def _per_item(correct: ArrayLike, bounded: bool = True) -> Values:
    values = np.asarray(correct, dtype=np.float64)
    if values.ndim not in (1, 2) or values.size == 0:
        raise ValueError(f"verdicts of shape {values.shape}; expected [items, samples] or [items]")
    if not bounded and not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    if bounded and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"verdicts from {values.min()} to {values.max()}; expected [0, 1]")
    return values if values.ndim == 1 else values.mean(axis=1)


def _means_by_seed(side: Sequence[ArrayLike], bounded: bool) -> Values:
    """Return the mean of each item for each seed, `[M, I]`."""
    if not side:
        raise ValueError("one side of the comparison has no seed; give at least one")
    means = [_per_item(correct, bounded) for correct in side]
    if len({len(each) for each in means}) > 1:
        counts = [len(each) for each in means]
        raise ValueError(f"seeds with {counts} items; a comparison needs the same items")
    return np.stack(means)


def _majority(verdicts: Values, answers: Sequence[str]) -> float:
    votes = Counter(answer for answer in answers if answer)
    most = max(votes.values(), default=0)
    tied = [answer for answer, count in votes.items() if count == most]
    right = [
        np.mean([v for v, a in zip(verdicts, answers, strict=True) if a == answer])
        for answer in tied
    ]
    return float(np.mean(right)) if right else 0.0


def _seed_variance(averages_M: Values) -> _SeedVariance:
    seeds = len(averages_M)
    if seeds == 1:
        return _SeedVariance(0.0, 0)
    return _SeedVariance(float(averages_M.var(ddof=1)) / seeds, seeds - 1)


def _add_seed_variance(
    found: Difference, standard_error: float, num_items: int, sides: Sequence[_SeedVariance]
) -> Difference:
    """Widen an interval from items, with its standard error, by the variance between seeds."""
    parts = [side for side in sides if side.variance > 0]
    if not parts:
        return found
    from scipy.special import stdtr, stdtrit  # 0.2 s, and only needed for several seeds

    between_seeds = sum(part.variance for part in parts)
    parts.append(_SeedVariance(standard_error**2, max(1, num_items - 1)))
    total = sum(part.variance for part in parts)
    freedom = total**2 / sum(part.variance**2 / part.freedom for part in parts)
    wider = float(stdtrit(freedom, 0.975)) / Z
    down = wider * float(np.hypot(found.difference - found.low, Z * between_seeds**0.5))
    up = wider * float(np.hypot(found.high - found.difference, Z * between_seeds**0.5))
    p_t = 2 * float(stdtr(freedom, -abs(found.difference) / total**0.5))
    p = max(found.p, p_t)
    return Difference(found.difference, found.difference - down, found.difference + up, p)
