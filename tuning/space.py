"""What a sweep tries: trials as dotted overrides of one `TrainConfig`.

In: names of arms, seeds and lists of values under dotted keys ("objective.num_samples"). Out: a
flat list of `Trial`s, and the `TrainConfig` of each.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from otr.config import TrainConfig


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep."""

    arm: str
    """Name of its row in the leaderboard; the trials of an arm differ in their seed alone."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of `TrainConfig` to values."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Of its directory and its run."""
        return f"{self.arm}-seed{self.seed}"


def grid(arm: str, seeds: Iterable[int], **axes: Any) -> list[Trial]:
    """One trial for every seed and every combination of the axes' values.

    Args:
        arm: a name, with the last part of an axis's key in braces where that axis has several
            values: "otr-k{num_samples}".
        seeds: of the trials of each arm.
        axes: dotted keys to a list of values or a single one:
            ``**{"objective.num_samples": [16, 256], "optim.lr": 3e-4}``.

    Raises:
        ValueError: two combinations would have the same name.
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
    """Raise ValueError where two trials would write to the same directory."""
    twice = [name for name, count in Counter(t.name for t in trials).items() if count > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} trial names occur twice, as {twice[0]!r}: put what differs into the "
            "arm's name, as in 'otr-k{num_samples}'"
        )
    bad = [t.name for t in trials if set(t.name) & set("/\\ ")]
    if bad:
        raise ValueError(f"arm name {bad[0]!r}: it names a directory, leave out / \\ and spaces")


def with_overrides(config: Any, overrides: Mapping[str, Any]) -> Any:
    """`config` (a `TrainConfig`, or a part of one) with dotted keys replaced.

    Raises:
        ValueError: an unknown key (with the nearest one), or a value that its config refuses.
    """
    return _replaced(config, overrides, "")


def _replaced(config: Any, overrides: Mapping[str, Any], prefix: str) -> Any:
    known = [f.name for f in dataclasses.fields(config)]
    inner: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if head not in known or (rest and not dataclasses.is_dataclass(getattr(config, head))):
            near = get_close_matches(head, known, n=1)
            hint = f"did you mean {prefix + near[0]!r}?" if near else f"use one of {known}"
            raise ValueError(f"unknown option {prefix + key!r}: {hint}")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            changes[head] = value
    for head, parts in inner.items():
        whole = changes.get(head, getattr(config, head))
        changes[head] = _replaced(whole, parts, f"{prefix}{head}.")
    return dataclasses.replace(config, **changes)


def config_of(config: TrainConfig, trial: Trial) -> TrainConfig:
    """The trial's own config."""
    return with_overrides(config, {"seed": trial.seed, **trial.overrides})
