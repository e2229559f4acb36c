"""A `SweepConfig` as run.json keeps it.

In: the path of a run.json. Out: the configuration that it was written from. And the fingerprint by
which two configurations are told apart.
"""

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipelines.config.presets import SweepConfig


def fingerprint(config: SweepConfig) -> str:
    """Six hexadecimal digits that differ where the runs would."""
    told = {k: v for k, v in asdict(config).items() if k not in ("name", "output", "engine")}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:6]


def read_run(path: str | Path) -> SweepConfig:
    """The configuration in a run.json.

    Raises:
        ValueError: no such file, or it holds something else (the key is named).
    """
    try:
        stored = json.loads(Path(path).read_text())["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no run.json of a run: {error!r}") from error
    return _build(SweepConfig, stored, "")


def _build(kind: Any, value: Any, place: str) -> Any:
    """A value of the annotated type `kind` from JSON."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, place)
    if origin is tuple:
        return tuple(_build(inner[0], each, f"{place}[{i}]") for i, each in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return None if value is None else _build(kind, value, place)
    return value


def _build_dataclass(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{place or 'config'} is {value!r}: expected an object")
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            raise ValueError(
                f"unknown key {f'{place}.{name}'.lstrip('.')!r}: "
                f"did you mean {get_close_matches(name, hints, 1, 0)[0]!r}?"
            )
    built = {n: _build(hints[n], v, f"{place}.{n}".lstrip(".")) for n, v in value.items()}
    return kind(**built)
