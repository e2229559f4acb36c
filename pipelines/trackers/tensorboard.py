"""TensorBoard: event files in `<run>/tensorboard/<trial>`, written with tensorboardX.

Metrics and scores are scalars; the parameters are those of TensorBoard's page HPARAMS.
"""

import time
from collections.abc import Mapping
from typing import Any

from pipelines.trackers import TrialToTrack

FOLDER = "tensorboard"


def check() -> None:
    """Check that tensorboardX is installed.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--trackers tensorboard needs tensorboardX ({error}): pip install tensorboardX"
        ) from error


class EventFiles:
    """The event files of a trial; a `TrialLog`.

    Each opening writes a new file. Its name ends with its number, since tensorboardX would
    overwrite a file of the same second. This does not use tensorboardX's `SummaryWriter`, whose
    `flush` leaves behind what waits in its queue.
    """

    def __init__(self, trial: TrialToTrack) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import hparams

        folder = trial.directory / FOLDER / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        number = len([*folder.glob("events.out.tfevents.*")])
        self._last: int | None = None
        self._file = EventsWriter(str(folder / "events"), f".{number:04d}")
        params = {k: v for k, v in trial.params.items() if v is not None}
        plain = {k: v if isinstance(v, bool | int | float) else str(v) for k, v in params.items()}
        _, session_start, _ = hparams(plain, {})
        self._write(summary=session_start)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of a step.

        Where the log was opened again or a step repeats, TensorBoard is told to hide what it has of
        this step and later ones.
        """
        from tensorboardX.proto.event_pb2 import SessionLog

        if self._last is None or step <= self._last:
            self._write(step=step, session_log=SessionLog(status=SessionLog.START))
        self._last = step
        self.log_scores(metrics, step)

    def log_scores(self, scores: Mapping[str, float], step: int) -> None:
        """Write scores at the trial's last step."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=score) for name, score in scores.items()]
        self._write(step=step, summary=Summary(value=values))
        self._file.flush()

    def close(self, *, ok: bool) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), **content))


def open_trial(trial: TrialToTrack) -> EventFiles:
    """Open the event files of a trial."""
    return EventFiles(trial)
