"""Private interfaces of Ray (2.60) that this package needs.

Each entry says why it is needed and where upstream it comes from.
`tests/otr/training/test_compat.py` fails when one of them disappears or behaves otherwise.
"""

from typing import Any

import pyarrow.fs
import ray.train
import ray.util
from ray._raylet import PlacementGroupID
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_put,
)
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.context import get_train_context
from ray.util.placement_group import PlacementGroup

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


def note_placement_group(directory: str) -> None:
    """Note in a worker which placement group it runs in, for `remove_placement_group`.

    Args:
        directory: of the run.
    """
    group = ray.util.get_current_placement_group()
    if group is not None:
        _internal_kv_put(_noted(directory), group.id.hex())


def remove_placement_group(directory: str) -> None:
    """Remove the placement group of the run's last workers, if Ray Train has not.

    Ray Train leaves the group if a worker was ended for want of memory, since its shutdown stops
    at that worker's OutOfMemoryError (`BackendSetupCallback` of ray.train.v2), and if the
    controller was ended together with its PlacementGroupCleaner. The group would keep its CPUs and
    GPUs until Ray's end. Ray's list of groups does not say whose they are, so a worker notes its
    own.
    """
    found = _internal_kv_get(_noted(directory))
    if found:
        group = PlacementGroup(PlacementGroupID(bytes.fromhex(found.decode())))
        ray.util.remove_placement_group(group)
        _internal_kv_del(_noted(directory))


def _noted(directory: str) -> str:
    return f"otr/placement group of {directory}"


_LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,  # Ray ends a process before the host runs out of memory
    ObjectLostError,
    RpcError,
    WorkerHealthCheckTimeoutError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)


def is_process_loss(failure: BaseException | None) -> bool:
    """Return whether a failure is the loss of a process or host, not an error raised by code.

    Ray Train reports both in `WorkerGroupError.worker_failures`, code errors unwrapped since
    https://github.com/ray-project/ray/pull/61153; only their types tell them apart. Many of Ray's
    error types are no losses, such as those of a disk that is full or of an exception that can't be
    unpickled. Ray's tasks and Ray Train's health check wrap the error that counts.
    """
    if isinstance(failure, WorkerHealthCheckFailedError):
        return is_process_loss(failure.health_check_failure)
    if isinstance(failure, RayTaskError):
        return is_process_loss(failure.cause)
    raised_at_start = isinstance(failure, RayActorError) and failure.actor_init_failed
    return isinstance(failure, _LOST) and not raised_at_start
