"""Write the reports of every trial to the sweep's storage as they arrive.

Ray Tune reads `result.json` of a trial at the end of a sweep: one JSON object per line. Its own
logger writes that file to the driver's disk, and Tune copies it to the storage every ten seconds. A
killed driver would lose the last reports; and when a sweep resumes, Tune would replace the reports
of the earlier attempts, since it fetches them only for trials with a checkpoint of Tune's own.
"""

import json
from pathlib import Path
from typing import Any, TextIO

import pyarrow.fs
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

REPORTS = "result.json"


class ReportLog(Callback):
    """Ray Tune callback that appends each report to the file of its trial; called in the driver.

    If the storage is an object store, to which nothing can be appended, the file stays on the
    driver's disk, from where Tune copies it.
    """

    def __init__(self) -> None:
        self._files: dict[str, TextIO] = {}

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Append a report."""
        if trial.trial_id not in self._files:
            self._files[trial.trial_id] = _open(trial)
        file = self._files[trial.trial_id]
        file.write(json.dumps(result, default=_plain) + "\n")
        file.flush()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Close the trial's file."""
        self._close(trial)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Close the trial's file."""
        self._close(trial)

    def _close(self, trial: TuneTrial) -> None:
        if file := self._files.pop(trial.trial_id, None):
            file.close()


def _open(trial: TuneTrial) -> TextIO:
    """Open a trial's file behind the reports of earlier attempts."""
    storage: Any = trial.storage
    if isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem):
        path = Path(storage.trial_fs_path, REPORTS)
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        trial.init_local_path()
        path = Path(str(trial.local_path), REPORTS)
        stored = f"{storage.trial_fs_path}/{REPORTS}"
        info = storage.storage_filesystem.get_file_info(stored)
        if not path.exists() and info.type == pyarrow.fs.FileType.File:
            path.write_bytes(storage.storage_filesystem.open_input_stream(stored).readall())
    if path.exists():
        content = path.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:  # the driver was killed while it wrote the last line
            path.write_bytes(complete)
    return path.open("a")


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a number, and anything else that JSON lacks as text."""
    return value.item() if hasattr(value, "item") else str(value)
