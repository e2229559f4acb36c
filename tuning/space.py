"""Search space of a sweep: trials as dotted overrides of one `TrainConfig`.

`grid` makes a flat list of `Trial`s from the name of an arm, seeds, and lists of values under
dotted keys ("objective.num_samples"). `config_of` returns the `TrainConfig` of a trial.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from otr.config import TrainConfig, types_of
from otr.hints import did_you_mean, repeated
from otr.loss.objective import Objective


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep."""

    arm: str
    """Name of its entry in the leaderboard; the trials of an arm differ only in their seed."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Value per dotted key of `TrainConfig`."""
    seed: int = 0
    number: int | None = None
    """Number of a search's trial within its arm, from 1; None for a trial of a sweep."""

    @property
    def name(self) -> str:
        """Name of its directory and of its run."""
        suffix = f"seed{self.seed}" if self.number is None else f"{self.number:04}"
        return f"{self.arm}-{suffix}"


def grid(arm: str, seeds: Iterable[int], **axes: Any) -> list[Trial]:
    """Return one trial per seed and combination of the axes' values.

    Args:
        arm: name of the arms. For each axis with several values, it has the last part of the axis's
            key in braces: "otr-k{num_samples}".
        seeds: one trial per seed in each arm.
        axes: a list of values, or a single one, per dotted key:
            ``**{"objective.num_samples": [16, 256], "optim.lr": 3e-4}``.

    Raises:
        ValueError: two combinations have the same name.
    """
    choices = [v if isinstance(v, list | tuple) else [v] for v in axes.values()]
    trials = []
    for values in itertools.product(*choices):
        overrides = dict(zip(axes, values, strict=True))
        name = arm.format(**{key.rsplit(".", 1)[-1]: value for key, value in overrides.items()})
        trials += [Trial(name, overrides, seed) for seed in seeds]
    check_names(trials)
    return trials


def check_names(trials: Sequence[Trial]) -> None:
    """Check that every trial has a directory of its own.

    Raises:
        ValueError: two trials have the same name, or a name is no directory name.
    """
    twice = repeated(trial.name for trial in trials)
    if twice:
        raise ValueError(
            f"{len(twice)} trial names occur more than once, for example {twice[0]!r}: put what "
            "differs into the arm's name, as in 'otr-k{num_samples}'"
        )
    bad = [t.arm for t in trials if set(t.arm) & set("/\\ ")]
    if bad:
        raise ValueError(
            f"arm {bad[0]!r}: an arm's name is part of a directory's; use no /, \\ or space"
        )


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Return `config` (a `TrainConfig` or a part of one) with the values of dotted keys replaced.

    Raises:
        ValueError: a key is unknown (the message names the nearest), or a config refuses its value.
    """
    return _replaced(config, overrides, "", "")


def _replaced(config: Any, overrides: Mapping[str, Any], prefix: str, train: str) -> Any:
    """Return a config with the values of its dotted keys replaced.

    Args:
        config: a configuration or a part of one.
        overrides: value per dotted key of `config`.
        prefix: how the keys of `config` begin in errors.
        train: how those of the `TrainConfig` begin that `config` is a part of. Its parts name their
            keys as it has them.
    """
    train = prefix if isinstance(config, TrainConfig) else train
    known = list(types_of(type(config)))
    inner: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if head not in known or (rest and not dataclasses.is_dataclass(getattr(config, head))):
            hint = did_you_mean(prefix + head, [prefix + name for name in known])
            raise ValueError(f"unknown option {prefix + key!r}: {hint}")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, parts in inner.items():
        part = changes.get(head, getattr(config, head))
        changes[head] = _replaced(part, parts, f"{prefix}{head}.", train)
    try:
        if isinstance(config, Objective):
            return config.changed(**changes)
        return dataclasses.replace(config, **changes)
    except ValueError as error:
        raise ValueError(f"{train}{error}") from error


def config_of(config: TrainConfig, trial: Trial) -> TrainConfig:
    """Return the trial's config: the sweep's with the trial's seed and overrides."""
    return with_overrides(config, {"seed": trial.seed, **trial.overrides})
