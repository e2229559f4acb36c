"""Which failures restart a run, and what its line says."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import ray.train
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from torch.distributed import DistBackendError, DistStoreError

from otr.config import DataConfig, ModelConfig, TrainConfig
from otr.loop.checkpoint import UnverifiedCheckpoint
from otr.training import driver
from otr.training.checkpoint_store import Position
from otr.training.restarts import Preempted, loss, restart_text

GLOO = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:605"
)
DIED = WorkerHealthCheckFailedError("lost", ray.exceptions.ActorDiedError())
NO_MEMORY = ray.exceptions.OutOfMemoryError(
    "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "192.0.2.2, ID: 5a3d) was 22.32GB used / 23.54GB limit (0.948032)\nOOM kill reason: ...\n"
    "2840\t0.11\tray::PlacementGroupCleaner\nRefer to the documentation"
)
NO_FIGURES = ray.exceptions.OutOfMemoryError("Task was killed.\nRefer to the documentation")
OURS = OSError("s3://bucket/step-000100 can't be written: Connection reset by peer")


def raised_by_a_task(error: Exception) -> Exception:
    return ray.exceptions.RayTaskError("f", "traceback", error).as_instanceof_cause()


def workers(*failures: Exception) -> WorkerGroupError:
    return WorkerGroupError("failed", dict(enumerate(failures)))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (workers(DIED), "the process of worker 0 was lost (The actor died"),
        (
            workers(NO_MEMORY),
            "the process of worker 0 was lost (Ray ended it because its host had no memory left: "
            "22.32 of 23.54 GB were used)",
        ),
        (workers(NO_FIGURES), "lost (Ray ended it because its host had no memory left)"),
        (workers(OURS, DIED), "the process of worker 1 was lost"),
        (workers(GLOO, DistStoreError("Broken pipe")), "workers lost the connection"),
        (workers(DistBackendError("NCCL error: ncclRemoteError: ...")), "workers lost the conn"),
        (ControllerError(WorkerGroupStartupFailedError("a node died")), "could not be started (a"),
        (ray.exceptions.ActorDiedError(), "the process that controls the workers was lost"),
        (workers(raised_by_a_task(ray.exceptions.NodeDiedError("gone"))), "worker 0 was lost"),
        (Preempted(), "the host of a worker will be taken away"),
    ],
)
def test_what_was_lost_is_said(error: Exception, said: str) -> None:
    assert said in loss(error)


def test_a_run_that_fails_for_want_of_memory_says_so() -> None:
    assert driver.worker_error(workers(NO_MEMORY)) == (
        "Ray ended it because its host had no memory left: 22.32 of 23.54 GB were used"
    )


@pytest.mark.parametrize(
    "error",
    [
        workers(OURS),
        workers(OURS, GLOO),  # the peer's lost connection follows from it
        workers(RuntimeError("the run said: Connection closed by peer")),
        workers(UnverifiedCheckpoint("run/unverified-step-000006", "its NLL differs")),
        workers(DistBackendError("NCCL error: ncclInvalidUsage")),
        workers(raised_by_a_task(ValueError("no"))),
        workers(ray.exceptions.OutOfDiskError("full")),
        workers(WorkerHealthCheckFailedError("lost", ray.exceptions.RaySystemError("unpickled"))),
        ControllerError(OURS),
        ControllerError(RuntimeError("a callback failed")),
        RuntimeError("no reason"),
    ],
)
def test_an_error_that_would_come_again_is_no_loss(error: Exception) -> None:
    assert loss(error) == ""


def test_the_line_says_why_from_which_step_and_what_it_cost() -> None:
    saved, reached = Position(30, 1000.0), Position(40, 1020.0)
    assert restart_text("the process of worker 0 was lost", saved, reached, 1042.0) == (
        "restarted, because the process of worker 0 was lost: goes on after step 30, saved 42 s "
        "ago; the last report was of step 40, so at least 10 steps are computed again"
    )
    first = restart_text("x", None, Position(5, 1.0), 2.0)
    assert "begins again, since nothing was saved yet; " in first and "least 5 steps" in first


Attempt = Callable[[], Any]


@pytest.fixture
def fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`driver.fit` without Ray: takes what each attempt does; `fit.jobs` are the jobs tried."""
    jobs: list[Any] = []

    def run(*attempts: Attempt) -> Any:
        remaining = iter(attempts)

        def trainer(job: Any, *_: Any) -> Any:
            jobs.append(pickle.loads(pickle.dumps(job)))
            return SimpleNamespace(fit=next(remaining))

        monkeypatch.setattr(driver, "_trainer", trainer)
        monkeypatch.setattr(driver, "_check_identity", lambda *_: None)
        monkeypatch.setattr(driver, "ensure_store", lambda *_: "packed")
        monkeypatch.setattr(driver, "_set_ray_train_environment", lambda _: None)
        monkeypatch.setattr(driver._compat, "start_autoscaling_coordinator", lambda: None)
        monkeypatch.setattr(driver._compat, "remove_placement_group", lambda _: None)
        config = TrainConfig(ModelConfig("model"), DataConfig(("data",)), max_steps=6)
        return driver.fit(config, storage=str(tmp_path), name="run")

    run.jobs = jobs  # type: ignore[attr-defined]
    return run


def ends(step: int, *, preempted: bool = False) -> Attempt:
    return lambda: SimpleNamespace(metrics={"step": step}, return_value=preempted)


def fails(error: Exception) -> Attempt:
    def attempt() -> None:
        raise error

    return attempt


def test_a_lost_process_and_a_preemption_restart_the_run(fit: Any) -> None:
    result = fit(fails(workers(DIED)), ends(3, preempted=True), ends(6))
    assert result.metrics == {"step": 6}
    first, second, third = (job.restart for job in fit.jobs)
    assert first is None and (second.number, third.number) == (1, 2)
    assert second.text.startswith("restarted, because the process of worker 0 was lost")
    assert third.text.startswith("restarted, because the host of a worker will be taken away")


@pytest.mark.parametrize("attempt", [fails(workers(OURS)), fails(ControllerError(OURS)), ends(3)])
def test_a_run_that_fails_by_an_error_or_ends_early_is_not_restarted(
    fit: Any, attempt: Attempt
) -> None:
    with pytest.raises((ray.train.TrainingFailedError, RuntimeError)):
        fit(attempt, ends(6))
    assert len(fit.jobs) == 1


def test_losses_without_a_new_checkpoint_end_the_run(fit: Any) -> None:
    with pytest.raises(WorkerGroupError):
        fit(*[fails(workers(DIED))] * 9)
    assert len(fit.jobs) == 1 + driver.RETRIES
