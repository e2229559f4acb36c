"""A run of a command: no other process writes to its directory, and MLflow records it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config.presets import SweepConfig
from pipelines.runtime import run_directory
from pipelines.tracking.tracker import Outcome, Tracker, store_uri


class RecordedRun(NamedTuple):
    """A run while it lasts."""

    record: dict[str, Any]
    """The content of run.json."""
    tracker: Tracker
    outcome: Outcome
    """Its `ok` is to be set once the run has reached its end."""


@contextmanager
def recorded_run(
    config: SweepConfig, directory: Path, params: Mapping[str, Any], trackers: Sequence[str] = ()
) -> Iterator[RecordedRun]:
    """Create or continue the run of a directory; hold and record it while the body runs.

    Args:
        config: written to run.json.
        directory: of the run.
        params: what MLflow shows as its parameters.
        trackers: names of those that record it besides MLflow.

    Raises:
        ValueError: the directory holds another run, or another process runs it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with run_directory.hold(directory):  # before run.json: two processes may start at once
        record = run_directory.open_run(config, directory)
        tracker = Tracker(store_uri(config.output), config.name, record["id"], directory, trackers)
        with (
            run_directory.log_errors(directory),
            tracker.run(params, run_directory.mlflow_tags(record)) as outcome,
        ):
            yield RecordedRun(record, tracker, outcome)
