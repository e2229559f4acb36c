"""Keep the files of ended trials off the driver's disk.

Tune gathers what the driver writes in one local directory, and copies all of it to the storage
every ten seconds. If the files of ended trials stayed there, each copy would include them, and the
work would grow with the square of the number of trials. At the end of a sweep Tune reads each
trial's files from the storage.
"""

import shutil
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from tuning import _compat


class MoveEndedTrials(Callback):
    """Ray Tune callback that moves an ended trial's files from the driver's disk to the storage.

    Tune calls it in the driver. Pass it after the loggers, which write the files.
    """

    def __init__(self) -> None:
        self._ended: list[TuneTrial] = []

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Note the trial. The files of a failed one stay: Tune reads its error from them."""
        self._ended.append(trial)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Move the files of ended trials, unless Tune is copying them.

        Tune starts its copy in this thread, so none can begin meanwhile.
        """
        while self._ended:
            trial = self._ended[-1]
            if _compat.is_syncing(trial):
                return
            try:
                _compat.upload_trial(trial)
            except OSError:  # the storage is unavailable: a later step tries again
                return
            shutil.rmtree(trial.local_path or "", ignore_errors=True)
            self._ended.pop()
