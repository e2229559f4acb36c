"""Private interfaces of Ray (2.60) that this package needs.

Each entry says why it is needed and where upstream it comes from. `tests/tuning/test_compat.py`
fails when one of them disappears or behaves otherwise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.train._internal.storage import _upload_to_fs_path
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

HEAD_NODE = "node:__internal_head__"
"""Resource that only the head node has, in the amount of 1.

Ray has no public name for it; it is `ray._private.ray_constants.HEAD_NODE_RESOURCE_NAME`.
"""


def pass_to_train_processes(variable: str) -> None:
    """Have Ray Train pass an environment variable on to the processes that it starts.

    Ray passes on only the variables of a private set, and takes `worker_runtime_env` for its
    workers but not for its other actors (`ray.train.v2._internal.constants`).
    """
    ENV_VARS_TO_PROPAGATE.add(variable)


def set_process_objects(
    tuner: tune.Tuner, callbacks: Sequence[tune.Callback], search_alg: SearchAlgorithm
) -> None:
    """Give a restored `Tuner` the callbacks and the search algorithm of this process.

    `Tuner.restore` takes neither, and its configs are private
    (https://github.com/ray-project/ray/issues/41364).
    """
    local = tuner._local_tuner
    assert local is not None  # it is None only under Ray Client
    local.get_run_config().callbacks = [*callbacks]
    local._tune_config.search_alg = search_alg


def is_syncing(trial: Trial) -> bool:
    """Return whether Tune is copying the driver's files to the storage at this moment.

    Tune starts the copy in the driver's main thread and does it in the background
    (https://github.com/ray-project/ray/pull/43689); nothing public tells.
    """
    storage: Any = trial.storage
    return bool(storage.syncer._should_continue_existing_sync())


def upload_trial(trial: Trial) -> None:
    """Copy the files of a trial from the driver's disk to the storage, if there are any.

    Tune has this only for the files of all trials together
    (https://github.com/ray-project/ray/pull/43403).

    Raises:
        OSError: the storage can't be written.
    """
    storage: Any = trial.storage
    if trial.local_path and Path(trial.local_path).is_dir():
        _upload_to_fs_path(trial.local_path, storage.storage_filesystem, storage.trial_fs_path)
