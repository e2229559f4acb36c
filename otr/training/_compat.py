"""Private interfaces of Ray (2.60) that this package needs.

Each entry says why it is needed and where upstream it comes from.
`tests/otr/training/test_compat.py` fails when one of them disappears or behaves otherwise.
"""

from typing import Any

import pyarrow.fs
import ray.exceptions
import ray.train
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.context import get_train_context

CHECKPOINT_LIST = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
"""File in a run's directory in which Ray Train lists the reported checkpoints.

Ray refuses to start a run when a listed checkpoint is missing, and does not write the file
atomically, so `checkpoint_store.recover` deletes it. No public API names the file
(https://github.com/ray-project/ray/pull/58216).
"""


def start_autoscaling_coordinator() -> None:
    """Start the actor that Ray Train asks for its workers' resources.

    Ray starts it only when the controller first asks, which then waits seconds for the new process
    (https://github.com/ray-project/ray/pull/61703). Started here, it comes up while the controller
    does.
    """
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

    default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def host_will_be_preempted() -> bool:
    """Return whether the cluster has announced that a worker's host will be taken away.

    The public `ray.train.get_preemption_info` is a barrier over all ranks
    (https://github.com/ray-project/ray/pull/64360). The training loop shares the answer between
    ranks already, so this reads the rank's own copy.
    """
    return get_train_context().preemption_context.preemption_info is not None


def run_storage() -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the file system of the current run's storage, and the run's directory on it.

    `TrainContext.get_storage` is a developer API whose result, `ray.train.v2._internal.execution.
    storage.StorageContext`, may change between minor versions.
    """
    storage: Any = ray.train.get_context().get_storage()
    return storage.storage_filesystem, storage.experiment_fs_path


def is_process_loss(failure: BaseException) -> bool:
    """Return whether a worker's failure is the loss of a process, not an error raised by its code.

    Ray Train reports both in `WorkerGroupError.worker_failures`, code errors unwrapped since
    https://github.com/ray-project/ray/pull/61153; only Ray's own base classes tell them apart.
    """
    if isinstance(failure, ray.exceptions.RayTaskError):  # an error that a task's code raised
        return False
    return isinstance(failure, RayTrainError | ray.exceptions.RayError)
