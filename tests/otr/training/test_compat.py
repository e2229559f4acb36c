"""The private interfaces of Ray that otr.training uses exist and behave as it expects."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from otr.training import _compat
from tests.integration.conftest import ray_cluster  # noqa: F401


def run(train: Any, storage: Path) -> ray.train.Result:
    return TorchTrainer(
        train,
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name="run", storage_path=str(storage), failure_config=FailureConfig(max_failures=0)
        ),
    ).fit()


def test_errors_of_a_task_s_code_are_not_process_losses() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    task_error = ray.exceptions.RayTaskError("f", "traceback", ValueError("no"))
    assert not _compat.is_process_loss(ValueError("no"))
    assert not _compat.is_process_loss(task_error.as_instanceof_cause())
    assert _compat.is_process_loss(ray.exceptions.WorkerCrashedError())
    assert _compat.is_process_loss(
        WorkerHealthCheckFailedError("lost", ray.exceptions.ActorDiedError())
    )


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_the_placement_group_that_a_worker_noted_is_removed() -> None:
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}])
    inside = PlacementGroupSchedulingStrategy(group)
    note = ray.remote(num_cpus=1, scheduling_strategy=inside)(_compat.note_placement_group)
    ray.get(note.remote("runs/mine"))
    _compat.remove_placement_group("runs/other")
    assert ray.util.placement_group_table(group)["state"] == "CREATED"
    for _ in range(2):  # the second time there is none
        _compat.remove_placement_group("runs/mine")
        assert ray.util.placement_group_table(group)["state"] == "REMOVED"


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_sees_its_storage_and_no_preemption(tmp_path: Path) -> None:
    def train() -> None:
        fs, directory = _compat.run_storage()
        assert not _compat.host_will_be_preempted()
        seen = {"fs": fs.type_name, "directory": directory}
        Path(directory, "seen.json").write_text(json.dumps(seen))
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report({}, checkpoint=checkpoint)

    _compat.start_autoscaling_coordinator()
    ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    run(train, tmp_path)
    seen = json.loads((tmp_path / "run" / "seen.json").read_text())
    assert seen == {"fs": "local", "directory": str(tmp_path / "run")}
    assert (tmp_path / "run" / _compat.CHECKPOINT_LIST).is_file()


@pytest.mark.integration
@pytest.mark.usefixtures("ray_cluster")
def test_a_code_error_and_a_killed_process_are_told_apart(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    def die() -> None:
        ray.train.report({})
        time.sleep(2)  # until the controller has seen the worker alive
        os.kill(os.getpid(), signal.SIGKILL)

    for train, lost in ((fail, False), (die, True)):
        with pytest.raises(ray.train.TrainingFailedError) as error:
            run(train, tmp_path / train.__name__)
        [failure] = error.value.worker_failures.values()  # type: ignore[attr-defined]
        assert _compat.is_process_loss(failure) == lost
