"""Read recipes: experiments in TOML, as changes to a preset.

    preset = "builtin"
    arms = ["sft", "otr-k16"]
    seeds = [0, 1, 2]
    benchmarks = ["gsm8k"]

    [train]
    max_steps = 200
    model.path = "models/mine"

`preset`, `arms` and `seeds` stand for the options of the same names; all other keys are those of
`SweepConfig`, nested or dotted.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from otr.config import types_of
from otr.hints import did_you_mean
from pipelines.config.presets import PresetName, SweepConfig
from pipelines.config.run_json import typed


@dataclass(frozen=True)
class Recipe:
    """The content of a recipe."""

    preset: PresetName | None = None
    arms: tuple[str, ...] = ()
    """Names of the preset's arms to run; empty: all."""
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
        content = tomllib.loads(Path(path).read_text())
        own = {"preset": PresetName, "arms": tuple[str, ...], "seeds": tuple[int, ...]}
        choices = {
            key: typed(kind, content.pop(key), key) for key, kind in own.items() if key in content
        }
        return Recipe(**choices, overrides=dict(flatten(content, also_known=own)))
    except (OSError, ValueError) as error:
        raise ValueError(f"recipe {path}: {error}") from error


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
            raise ValueError(
                f"unknown key {full_key!r}: {did_you_mean(name, [*hints, *also_known])}"
            )
        if is_dataclass(hints[name]):
            inner = {rest: value} if rest else value
            if not isinstance(inner, Mapping):
                raise ValueError(f"{full_key} is {value!r}: expected a table")
            yield from flatten(inner, hints[name], full_key)
        elif rest:
            raise ValueError(f"unknown key {f'{full_key}.{rest}'!r}: {full_key!r} is not a table")
        else:
            yield full_key, typed(hints[name], value, full_key)
