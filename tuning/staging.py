"""What Ray Tune keeps on the driver's disk of trials that have ended: nothing.

In: Tune's calls. Out: each trial's files in the sweep's storage, from where Tune reads them at the
end. Tune gathers what the driver writes in a directory of its own and copies all of that to the
storage every ten seconds; so what an ended trial has there would be copied as long as the sweep
lasts, and the copies would grow with the square of the number of trials.
"""

import shutil
from pathlib import Path
from typing import Any

from ray.train._internal.storage import _upload_to_fs_path
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial


class Staging(Callback):
    """A Ray Tune callback, called in the driver; to stand behind the loggers."""

    def __init__(self) -> None:
        self._ended: list[TuneTrial] = []

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Of one that fails the files stay: Tune reads its error there."""
        self._ended.append(trial)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Move the files of ended trials, unless Tune is copying: it begins that in this thread."""
        while self._ended:
            trial: Any = self._ended[-1]  # Tune types what it always has as if it might lack it
            storage, here = trial.storage, trial.local_path
            if storage.syncer._should_continue_existing_sync():
                return
            try:
                if Path(here).is_dir():
                    _upload_to_fs_path(here, storage.storage_filesystem, storage.trial_fs_path)
            except OSError:  # the storage is away: a later step tries again
                return
            shutil.rmtree(here, ignore_errors=True)
            self._ended.pop()
