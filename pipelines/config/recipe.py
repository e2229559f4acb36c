"""Read recipes: experiments in TOML, as changes to a preset.

    preset = "builtin"
    arms = ["sft", "otr-k16"]
    seeds = [0, 1, 2]
    benchmarks = ["gsm8k"]

    [train]
    max_steps = 200
    model.path = "models/mine"

`preset`, `arms` and `seeds` stand for the options of the same names; all other keys are those of
`SweepConfig`, nested or dotted. A recipe can also have arms of its own instead of the preset's:

    [arms.otr-strict]
    objective.name = "otr"
    objective.mismatch_reward = -1.0
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from otr.config import TrainConfig, keys_of, types_of
from otr.hints import key_hint
from pipelines.config.presets import PRESETS, PresetName, SweepConfig
from pipelines.config.run_json import typed
from tuning.arms import COMPARABLE

_BASE = "base"  # `pipelines.report.leaderboard.BASE`, whose imports take long
_MAIN = {"model": "path", "data": "paths", "objective": "name", "workers": "count", "lora": "rank"}
"""The setting that a single value in place of a table stands for."""


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe."""

    preset: PresetName | None = None
    arms: tuple[str, ...] = ()
    """Names of the arms to run; empty: all."""
    own_arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The recipe's own arms: dotted keys of `TrainConfig` to values."""
    seeds: tuple[int, ...] = ()
    """Seeds of each arm; empty: the preset's."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of `SweepConfig` to values."""


def read_recipe(path: str | Path) -> Recipe:
    """Return the content of a recipe.

    Raises:
        ValueError: the file cannot be read as TOML, a key is unknown, or a value has a wrong type.
    """
    try:
        content = _read(Path(path))
        if "trials" in content:
            raise ValueError("trials can't be given: give arms as tables, [arms.NAME], and seeds")
        tables = content.pop("arms") if isinstance(content.get("arms"), Mapping) else {}
        own_arms = {name: _settings(name, table) for name, table in tables.items()}
        own = {"preset": PresetName, "arms": tuple[str, ...], "seeds": tuple[int, ...]}
        choices = {
            key: typed(kind, content.pop(key), key) for key, kind in own.items() if key in content
        }
        search = content.get("search")
        if isinstance(search, Mapping) and isinstance(search.get("space"), Mapping):
            content["search"] = {**search, "space": dict(_undivided(search["space"]))}
        overrides = dict(flatten(content, also_known=own))
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe {path}: {error}") from error
    return Recipe(**choices, own_arms=own_arms, overrides=overrides)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or it is not TOML.
        OSError: it can't be read.
    """
    if path.name in PRESETS and not path.exists():
        raise ValueError(f"no such file; for the preset of this name, give --preset {path.name}")
    if not path.exists():
        raise ValueError(f"no such file in {path.absolute().parent}")
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # some editors begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (at byte {error.start}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        both = "; arms is a list of names or tables [arms.NAME], not both"
        raise ValueError(str(error) + (both if "('arms'" in str(error) else "")) from error


def _undivided(space: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a space by dotted key: `optim.lr = "..."` without quotes is a table."""
    for name, value in space.items():
        if isinstance(value, Mapping):
            yield from _undivided(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _settings(arm: str, table: Any) -> dict[str, Any]:
    """Return what an arm sets: dotted keys of `TrainConfig` to values.

    Raises:
        ValueError: it is no table, has an unknown key or a value of a wrong type, or sets what all
            arms must share.
    """
    path = f"arms.{arm}"
    if arm == _BASE:
        raise ValueError(f"{path}: the base model has this name in the report; use another one")
    if not isinstance(table, Mapping):
        raise ValueError(f"{path} is {table!r}: expected a table")
    settings = {
        key.removeprefix(f"{path}."): value for key, value in flatten(table, TrainConfig, path)
    }
    for key in settings:
        if not key.startswith(COMPARABLE):
            raise ValueError(
                f"{path} sets {key}: an arm sets objective, optim, lora or kl_weight; all else is "
                "the same in all arms, so that they can be compared"
            )
    return settings


def flatten(
    table: Mapping[str, Any], kind: type = SweepConfig, path: str = "", also_known: Any = ()
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the typed value of each leaf of a nested table.

    Args:
        table: keys of `kind`, nested or dotted, to values.
        kind: the dataclass whose fields the keys are.
        path: dotted key of the table, empty at the top.
        also_known: further names for the hint about an unknown key.

    Raises:
        ValueError: an unknown key (the nearest one is named), or a value of a wrong type.
    """
    hints = types_of(kind)
    for key, value in table.items():
        name, _, rest = key.partition(".")
        full_key = f"{path}.{name}".lstrip(".")
        if name not in hints:
            known = keys_of(TrainConfig if full_key.startswith("arms.") else SweepConfig)
            hint = key_hint(name, [*hints, *also_known], known)
            raise ValueError(f"unknown key {full_key!r}: {hint}")
        if is_dataclass(hints[name]):
            inner = {rest: value} if rest else value
            if not isinstance(inner, Mapping):
                meant = f"; did you mean {full_key}.{_MAIN[name]}?" if name in _MAIN else ""
                raise ValueError(f"{full_key} is {value!r}: expected a table{meant}")
            yield from flatten(inner, hints[name], full_key)
        elif rest:
            raise ValueError(f"unknown key {f'{full_key}.{rest}'!r}: {full_key!r} is not a table")
        else:
            yield full_key, typed(hints[name], value, full_key)
