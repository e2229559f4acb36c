"""The private interfaces of Ray that otr.training uses exist and behave as it expects."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

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


def test_the_shutdown_of_workers_gets_past_one_that_ended_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(*arguments: Any, **options: Any) -> None:
        raise ray.exceptions.OutOfMemoryError("4 worker(s) were killed")

    group: Any = SimpleNamespace(execute_async=lambda *a, **b: [])
    monkeypatch.setattr("ray.train.torch.config.len", lambda group: 1, raising=False)
    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        TorchConfig().backend_cls().on_shutdown(group, TorchConfig())
    ours = _compat.LeavingTorchConfig()
    ours.backend_cls().on_shutdown(group, ours)


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
