"""The arms of a search: the settings that each one has, and the values to search of them."""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from math import prod
from typing import Any

from otr.config import TrainConfig, keys_of, types_of
from otr.hints import key_hint
from otr.loss.objective import owners
from tuning.domains import Domain
from tuning.settings import SearchSettings
from tuning.space import Trial, config_of, with_overrides

RATE = "optim.lr"
COMPARABLE = ("objective.", "optim.", "lora.", "kl_weight")
"""How the keys of `TrainConfig` begin in which arms may differ, and which can be searched."""
MOST_TRIALS = 10_000
"""Most trials of an arm in a search whose budget limits only time or tokens."""


@dataclass(frozen=True)
class SearchArm:
    """An arm of a search."""

    name: str
    overrides: dict[str, Any]
    """Values that all of its trials have."""
    domains: dict[str, Domain]
    """What is searched, by dotted key of `TrainConfig`; may be empty."""

    def trial(self, number: int, values: Mapping[str, Any], seed: int) -> Trial:
        """Return a trial of the search."""
        return Trial(self.name, {**self.overrides, **values}, seed, number)

    def combinations(self) -> int:
        """Return the number of combinations of listed values; 0 if a domain has no list."""
        lists = [domain.listed() for domain in self.domains.values()]
        return 0 if None in lists else prod(len(each or ()) for each in lists)


def search_arms(
    config: TrainConfig, trials: Sequence[Trial], domains: Mapping[str, Domain]
) -> list[SearchArm]:
    """Return the arms of a search: each with those of the settings that it has.

    Args:
        config: the config that the trials override.
        trials: the trials of the sweep; those of an arm differ only in their seed.
        domains: the values of each setting.

    Raises:
        ValueError: a setting is unknown, can't be searched, is in no arm or already has a value
            there, or an arm's config refuses one of the values.
    """
    for key, domain in domains.items():
        _check_key(config, key, domain)
    arms = []
    for trial in {trial.arm: trial for trial in reversed(trials)}.values():
        own = {key: domain for key, domain in domains.items() if _has(config, trial, key, domains)}
        arms.append(SearchArm(trial.arm, trial.overrides, own))
        for key, domain in own.items():
            if key in trial.overrides:
                raise ValueError(
                    f"the arm {trial.arm} sets {key} to {trial.overrides[key]!r}, and it is "
                    "searched: leave one of them out"
                )
            for value in domain.ends():
                _check_value(config, trial, key, value)
    arms.reverse()
    missing = [key for key in domains if not any(key in arm.domains for arm in arms)]
    if missing:
        key, names = missing[0], ", ".join(arm.name for arm in arms)
        has = owners(key.removeprefix("objective."))
        what, remedy = "", "add an arm with --arms"
        if has:
            what = f", a setting of {' and '.join(has)}"
        elif key.startswith("lora."):
            what, remedy = ", a setting of adapters", "set --train.lora.rank, such as 16"
        raise ValueError(
            f"the search names {key}{what}, but no arm has it ({names}): leave it out, or {remedy}"
        )
    return arms


def most_trials(arms: Sequence[SearchArm], settings: SearchSettings) -> dict[str, int]:
    """Return the most trials that each arm of a search gets, by arm.

    All arms in which something is searched get equally many, except in a grid. Time or tokens in
    the budget may leave fewer.

    Raises:
        ValueError: the budget has less than one trial for each of them.
    """
    searched = [arm for arm in arms if arm.domains]
    none = dict.fromkeys((arm.name for arm in arms), 0)
    if settings.sampler == "grid":
        return none | {arm.name: arm.combinations() for arm in searched}
    trials = settings.limits.trials
    if trials is not None and trials < len(searched):
        names = ", ".join(arm.name for arm in searched)
        raise ValueError(
            f"the budget of {settings.budget} is less than one trial for each of {len(searched)} "
            f"arms ({names}): give a larger --budget or fewer --arms"
        )
    each = MOST_TRIALS if trials is None else trials // max(1, len(searched))
    return none | {arm.name: each for arm in searched}


def costliest(config: TrainConfig, arm: SearchArm) -> TrainConfig:
    """Return the config of an arm with the largest values of what is searched."""
    largest = {}
    for key, domain in arm.domains.items():
        numbers = [value for value in domain.ends() if isinstance(value, int | float)]
        largest[key] = max(numbers) if numbers else domain.ends()[0]
    return config_of(config, arm.trial(1, largest, 0))


def _has(config: TrainConfig, trial: Trial, key: str, domains: Mapping[str, Domain]) -> bool:
    """Return whether a setting has an effect in an arm."""
    own = config_of(config, trial)
    if key.startswith("lora."):
        return own.lora.rank > 0 or "lora.rank" in domains
    if not key.startswith("objective."):
        return True
    if own.objective.name not in owners(key.removeprefix("objective.")):
        return False
    draws = own.objective.draws_hits or own.objective.draws_misses
    return key != "objective.num_samples" or draws or "objective.estimator" in domains


def _check_key(config: TrainConfig, key: str, domain: Domain) -> None:
    """Check that a setting can be searched, and that the values have its type.

    Raises:
        ValueError: the setting can't be searched, or a value has another type.
    """
    if key == "objective.name":
        raise ValueError("the search names objective.name: choose objectives with --arms")
    keys = [*keys_of(type(config))]
    if key not in keys:
        searched = [each for each in keys if each.startswith(COMPARABLE)]
        table, _, name = key.rpartition(".")
        near = [each.rpartition(".")[2] for each in searched if each.startswith(f"{table}.")]
        raise ValueError(
            f"the search names {key}, which is not a setting: {key_hint(name, near, searched)}"
        )
    kind: Any = type(config)
    for name in key.split("."):
        kind = types_of(kind)[name]
    if not key.startswith(COMPARABLE) or is_dataclass(kind):
        raise ValueError(
            f"the search names {key}: only settings of objective, optim and lora, and kl_weight, "
            "can be searched; trials with other data, models or lengths could not be compared"
        )
    if typing.get_origin(kind) in (tuple, dict):
        raise ValueError(
            f"the search names {key}: {key} has several values, and only a single one can be "
            "searched; compare them as arms of a recipe ([arms.NAME])"
        )
    wrong = [value for value in domain.ends() if not _is_of(kind, value)]
    if wrong or (kind is int and not domain.is_whole):
        got = repr(wrong[0]) if wrong else "fractions"
        raise ValueError(
            f"search of {key}={domain.text}: {key} takes {_kind_name(kind)}, not {got}"
            f"{_remedy(kind, wrong)}"
        )


def _remedy(kind: Any, wrong: Sequence[Any]) -> str:
    """Return what to write instead of values of another type; "" if the type says it."""
    if kind in (int, float) and any(isinstance(value, str) for value in wrong):
        return ": write numbers without quotes"
    return ": use randint or choice of whole numbers" if kind is int else ""


def _is_of(kind: Any, value: Any) -> bool:
    """Return whether a value has a field's type; other types than these are left to the config."""
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind not in (bool, str) or isinstance(value, kind)


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    return names.get(kind, str(kind))


def _check_value(config: TrainConfig, trial: Trial, key: str, value: Any) -> None:
    try:
        with_overrides(config_of(config, trial), {key: value})
    except ValueError as error:
        raise ValueError(
            f"the search of {key} in the arm {trial.arm} has the value {value!r}: {error}"
        ) from error
