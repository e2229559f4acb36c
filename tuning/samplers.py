"""Optuna's samplers, such that what one suggests depends on its arguments alone.

The state of a sampler's random numbers is not in a study. So each trial is sampled by a sampler
with a seed of its own, which follows from the search's seed, the trial's number and the setting: a
search that was killed suggests what it would have suggested.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from tuning.domains import Domain

Make = Callable[[int], BaseSampler]
MOST_RANDOM = 10
"""Most random trials with which TPE begins."""


def sampler_of(kind: str, domains: Mapping[str, Domain], seed: int, trials: int) -> BaseSampler:
    """Return the sampler of an arm.

    Args:
        kind: tpe, random or grid.
        domains: what is searched in the arm.
        seed: seed of the search.
        trials: number of trials that the arm gets.
    """
    if kind == "grid":
        return _Grid(domains)
    if kind == "random":
        return _Seeded(lambda number: RandomSampler(seed=number), seed)
    first = min(MOST_RANDOM, max(3, trials // 3))
    return _Seeded(lambda number: TPESampler(seed=number, n_startup_trials=first), seed)


def distribution_of(domain: Domain) -> BaseDistribution:
    """Return a domain as Optuna has it; both ends are included."""
    values = domain.arguments
    if domain.function == "choice":
        return CategoricalDistribution(values)
    if domain.is_whole:
        low, high, step = (*values, 1)[:3]
        return IntDistribution(low, low + (high - low) // step * step, step=step)
    if domain.function == "quniform":
        listed = domain.listed() or []
        return FloatDistribution(listed[0], listed[-1], step=values[2])
    low, high = values
    return FloatDistribution(low, high, log=domain.is_log)


class _EachAlone(BaseSampler):
    """Samples each setting on its own, as TPE and random samplers do too."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the settings that are sampled together: none."""
        return {}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Return the values of the settings that are sampled together: none."""
        return {}


class _Seeded(_EachAlone):
    """Samples each setting of each trial with a sampler of its own."""

    def __init__(self, make: Make, seed: int) -> None:
        self._make, self._seed = make, seed

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of a setting."""
        sampler = self._make(crc32(f"{self._seed}/{trial.number}/{param_name}".encode()))
        return sampler.sample_independent(study, trial, param_name, param_distribution)


class _Grid(_EachAlone):
    """Every combination of the listed values, in their order. Optuna's ends the study itself."""

    def __init__(self, domains: Mapping[str, Domain]) -> None:
        self._keys: Sequence[str] = [*domains]
        self._lists = [domain.listed() or [] for domain in domains.values()]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of a setting in the trial's combination."""
        points = itertools.product(*self._lists)
        point = next(itertools.islice(points, trial.number, None))
        return point[self._keys.index(param_name)]
