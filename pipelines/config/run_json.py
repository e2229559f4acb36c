"""Read configurations from run.json files, and compare configurations by a fingerprint."""

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from otr.config import RENAMED, types_of
from otr.hints import did_you_mean
from otr.loss.objective import own_settings
from pipelines.config.presets import SweepConfig

RUN_FILE = "run.json"
"""Name of the file in a run's directory that holds its configuration."""
NOT_RESULTS = ("name", "output", "engine", "epochs", "chosen", "trackers")
"""Fields of a configuration that do not decide a run's results."""


def fingerprint(config: SweepConfig, *more: str) -> str:
    """Return six hexadecimal digits that differ where two runs' results, or `more`, may differ."""
    relevant: Any = {k: v for k, v in asdict(config).items() if k not in NOT_RESULTS}
    relevant = [relevant, *more] if more else relevant
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:6]


def run_file(path: str | Path) -> Path | None:
    """Return the run.json that a path names: itself, or that of a run's directory; None for others.

    Raises:
        ValueError: it is a directory without a run.json.
    """
    path = Path(path)
    if not path.is_dir():
        return path if path.suffix == ".json" else None
    if not (path / RUN_FILE).is_file():
        raise ValueError(
            f"{path} has no {RUN_FILE}: give the directory of a run, a {RUN_FILE} or a recipe"
        )
    return path / RUN_FILE


def read_run(path: str | Path) -> SweepConfig:
    """Return the configuration in a run.json.

    Raises:
        ValueError: there is no such file, or it holds something else (the key is named).
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file in {Path(path).absolute().parent}")
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict) or "config" not in content:
        raise ValueError(f"{path} is not the {RUN_FILE} of a run: it has no config")
    try:
        return typed(SweepConfig, _with_current_names(content["config"]), "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _with_current_names(config: Any) -> Any:
    """Return the stored configuration with the keys that were renamed since under their new name.

    Settings of an objective that had no effect are left out. Old names are read for one release
    (`otr.config.RENAMED`), also in the overrides of trials.
    """
    if not isinstance(config, dict) or not isinstance(config.get("train"), dict):
        return config
    for old, new in RENAMED.items():
        *parents, name = old.split(".")
        part = config["train"]
        for parent in parents:
            part = part.get(parent, {})
        if name in part:
            part[new.rpartition(".")[2]] = part.pop(name)
    if isinstance(config["train"].get("objective"), dict):
        config["train"]["objective"] = own_settings(config["train"]["objective"])
    for trial in config.get("trials", ()):
        overrides = trial.get("overrides", {})
        trial["overrides"] = {RENAMED.get(key, key): value for key, value in overrides.items()}
    return config


def typed(kind: Any, value: Any, path: str) -> Any:
    """Return a value of the annotated type `kind` made of JSON or TOML.

    Args:
        kind: a dataclass, a tuple, a dict, an optional type, a `Literal` or a plain type.
        value: what `json` or `tomllib` read.
        path: dotted key of the value, for error messages.

    Raises:
        ValueError: an unknown or a missing key, or a value of another type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _typed_dataclass(kind, value, path)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(typed(inner[0], each, f"{path}[{i}]") for i, each in enumerate(value))
    if origin in (types.UnionType, typing.Union):
        (kind,) = (each for each in inner if each is not type(None))
        return None if value is None else typed(kind, value, path)
    if origin is typing.Literal:
        if value not in inner:
            raise ValueError(f"{path} is {value!r}: use one of {', '.join(map(repr, inner))}")
        return value
    expected = origin or kind
    accepted = (float, int) if expected is float else expected
    if expected in (bool, int, float, str, tuple, dict) and (
        not isinstance(value, accepted) or isinstance(value, bool) != (expected is bool)
    ):
        raise ValueError(f"{path} is {value!r}: expected {_NAMES[expected]}{_remedy(kind, value)}")
    if expected is dict and inner:
        return {key: typed(inner[1], each, f"{path}.{key}") for key, each in value.items()}
    return value


def _remedy(kind: Any, value: Any) -> str:
    """Return how to write a value of another type; "" if its type says it."""
    if kind in (int, float) and isinstance(value, str) and _is_number(value):
        return ", without quotes"
    if kind is bool and value in ("true", "false"):
        return ", without quotes"
    if kind is str and isinstance(value, int | float):
        return ", in quotes"
    if kind == tuple[str, ...] and isinstance(value, str):
        return f", as in [{value!r}]"
    if kind == tuple[int, ...] and isinstance(value, int):
        return f", as in [{value}]"
    return ""


def _is_number(text: str) -> bool:
    """Return whether a text is a number."""
    with suppress(ValueError):
        float(text)
        return True
    return False


_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    tuple: "a list",
    dict: "a table",
}


def _typed_dataclass(kind: type, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path or 'config'} is {value!r}: expected a table")
    hints, within = types_of(kind), path and f"{path}."
    for name in value:
        if name not in hints:
            raise ValueError(f"unknown key {within + name!r}: {did_you_mean(name, hints)}")
    for each in fields(kind):
        if each.name not in value and each.default is each.default_factory is MISSING:
            raise ValueError(f"{within}{each.name} is missing, and has no default")
    values = {name: typed(hints[name], each, f"{within}{name}") for name, each in value.items()}
    try:
        return kind(**values)
    except ValueError as error:
        train = "train." if path.partition(".")[0] == "train" else ""  # it names keys from there
        raise ValueError(f"{train}{error}") from error
