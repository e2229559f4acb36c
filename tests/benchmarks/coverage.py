"""How often the 95 % intervals of `evals.statistics` cover the true value, by exact enumeration.

`python -m tests.benchmarks.coverage` prints two Markdown tables. The first is over single verdicts:
mean and least coverage over true rates from 0.001 to 0.999, every result weighted with its binomial
probability; beside it Wilson's interval and the percentile bootstrap, whose ends are quantiles of
the binomial distribution. The second is over items with several samples whose ability has a beta
distribution; `agreement` is the sum of its parameters, small if the samples of an item agree.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evals.statistics import interval, wilson
from evals.statistics.proportions import PRIOR_ITEMS, score_interval

Values = NDArray[np.float64]
ITEMS = (10, 30, 100)
RATES = np.linspace(0.001, 0.999, 999)
SAMPLES = 4


class Ability(NamedTuple):
    """A beta distribution of the items' rates: its mean, and the sum of its parameters."""

    mean: float
    agreement: float


def of_verdicts(items: int, rates: Values, method: Callable[[Values], Sequence[float]]) -> Values:
    """Return the coverage of each rate by `method`, which returns (..., low, high) of verdicts."""
    right = np.arange(items + 1)
    ends = np.array([method((np.arange(items) < count).astype(float))[-2:] for count in right])
    inside = (ends[:, :1] <= rates + 1e-12) & (rates <= ends[:, 1:] + 1e-12)
    return (stats.binom.pmf(right[:, None], items, rates) * inside).sum(0)


def of_samples(items: int, samples: int, ability: Ability) -> float:
    """Return the coverage of the mean of items with several samples each.

    An interval depends on the sum of the items' numbers of right samples and on the sum of their
    squares. The distribution of the two is the convolution of those of the items.
    """
    a, b = ability.mean * ability.agreement, (1 - ability.mean) * ability.agreement
    weights = stats.betabinom.pmf(np.arange(samples + 1), samples, a, b)
    table = np.zeros((items * samples + 1, items * samples**2 + 1))
    table[0, 0] = 1
    for _ in range(items):
        before, table = table, np.zeros_like(table)
        for right, weight in enumerate(weights):
            rows, columns = table.shape[0] - right, table.shape[1] - right**2
            table[right:, right**2 :] += weight * before[:rows, :columns]
    covered = 0.0
    for total, squares in zip(*np.nonzero(table > 1e-12), strict=True):
        mean = total / (items * samples)
        low, high = score_interval(mean, _count(items, mean, squares / (items * samples**2)))
        covered += table[total, squares] * (low <= ability.mean <= high)
    return covered


def _count(items: int, mean: float, mean_square: float) -> float:
    """Return `effective_count` of items with this mean and mean square."""
    largest = mean * (1 - mean)
    if largest <= 0:
        return items
    variance = max(0.0, mean_square - mean**2)
    return items * largest * (items + PRIOR_ITEMS) / (items * variance + PRIOR_ITEMS * largest)


def _percentiles(verdicts: Values) -> Sequence[float]:
    """Return the ends of the bootstrap: resamples of single verdicts are binomial."""
    if np.ptp(verdicts) == 0:
        return wilson(float(verdicts[0]), len(verdicts))
    ends = stats.binom.ppf([0.025, 0.975], len(verdicts), verdicts.mean())
    return list(ends / len(verdicts))


def _wilson(verdicts: Values) -> Sequence[float]:
    return wilson(float(verdicts.mean()), len(verdicts))


def main() -> None:
    methods = {"ours": interval, "Wilson": _wilson, "percentile bootstrap": _percentiles}
    print(f"| items | {' | '.join(f'{name}: mean, least' for name in methods)} |")
    print(f"|---|{'---|' * len(methods)}")
    for items in ITEMS:
        found = [of_verdicts(items, RATES, method) for method in methods.values()]
        print(f"| {items} | {' | '.join(f'{c.mean():.3f}, {c.min():.3f}' for c in found)} |")
    print(f"\n| items of {SAMPLES} samples | agreement | rate .05 | rate .2 | rate .5 | rate .8 |")
    print("|---|---|---|---|---|---|")
    for items in ITEMS:
        for agreement in (0.5, 2.0, 20.0):
            abilities = [Ability(rate, agreement) for rate in (0.05, 0.2, 0.5, 0.8)]
            cells = [f"{of_samples(items, SAMPLES, each):.3f}" for each in abilities]
            print(f"| {items} | {agreement:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
