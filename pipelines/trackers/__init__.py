"""Trackers besides MLflow, by name: every module here is one.

To add a tracker, create `pipelines/trackers/NAME.py` with two functions, and its test:

- `check() -> None`, which raises `ValueError` if a package or a setting is missing;
- `open_trial(trial: TrialToTrack) -> TrialLog`.

Packages are imported inside these functions.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from otr.hints import did_you_mean


@dataclass(frozen=True)
class TrialToTrack:
    """A trial whose log a tracker opens, for the first time or again."""

    directory: Path
    """The run's directory."""
    run: str
    """Name of the run."""
    name: str
    """Name of the trial."""
    id: str
    """Id of the trial; no other trial of any run has it, and it stays when the run resumes."""
    params: Mapping[str, Any]
    """Its parameters by dotted key."""
    step: int = -1
    """The last step that the tracker has for certain; -1: none."""


class TrialLog(Protocol):
    """The log of a trial in a tracker; its methods are called in one thread."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step. A trial that restarts repeats the steps after it."""

    def log_scores(self, scores: Mapping[str, float], step: int) -> None:
        """Write scores of the trained model; `step` is the trial's last step."""

    def close(self, *, ok: bool) -> None:
        """Write what is buffered; `ok` tells whether the trial went well."""


def names() -> tuple[str, ...]:
    """Return the names of the trackers, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def check_names(trackers: tuple[str, ...]) -> None:
    """Check that all trackers are known.

    Raises:
        ValueError: one is not; the message names the nearest.
    """
    for name in trackers:
        if name not in names():
            raise ValueError(f"no tracker {name!r}: {did_you_mean(name, names())}")


def load(name: str) -> Any:
    """Return the module of a tracker."""
    return importlib.import_module(f"{__name__}.{name}")
