"""One sweep through many faults: after each it resumes where it was, in the same MLflow runs.

The tests run in order; each starts where the previous one left the sweep.
"""

import json
import re
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from tests.cluster.cluster import MLFLOW, WORKERS, Cluster, Job
from tests.cluster.rig import STORAGE, run, wait_for
from tests.cluster.test_cluster import runs_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

NAME, TRIAL, STEPS, SAVE = "faults", "sft-seed0", 400, 5
OPTIONS = ["--arms", "sft", "--max-steps", str(STEPS), "--train.checkpoint-interval", str(SAVE)]
OPTIONS += ["--train.eval-interval", str(STEPS), "--max-items", "100", "--engine.concurrency", "2"]
OUTAGE_SECONDS = 30


class Faulty:
    """A sweep that is hit by faults: its latest job and its progress."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.job: Job
        self.submit()

    def submit(self) -> None:
        """Submit the same command again."""
        self.job = self.cluster.sweep(NAME, *OPTIONS)

    @property
    def saved(self) -> int:
        """Newest step with a checkpoint."""
        trial = self.cluster.folder(NAME) / "trials" / TRIAL / "train"
        return max((int(path.name[5:]) for path in trial.glob("step-*")), default=0)

    def wait_for_checkpoints(self, more: int = 1) -> int:
        """Wait for `more` further checkpoints; return the newest step."""
        before = self.saved
        wait_for(lambda: self.job.ended() or self.saved >= before + more * SAVE, "a checkpoint")
        assert not self.job.ended(), self.job.log
        return self.saved

    def wait_for_resume(self, at_least: int) -> int:
        """Wait until the job resumes; return its step, which must be that of a checkpoint."""
        self.job.until(r"resumes from step \d+")
        step = int(re.findall(r"resumes from step (\d+)", self.job.log)[-1])
        assert at_least <= step <= self.saved, (at_least, step, self.saved)
        return step


@pytest.fixture(scope="module")
def faulty(cluster: Cluster) -> Iterator[Faulty]:
    cluster.hosts.boot("two")
    cluster.wait_for_nodes("head", *WORKERS)
    yield Faulty(cluster)


def test_trial_moves_when_a_worker_host_is_lost(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    step = faulty.wait_for_checkpoints(2)
    [lost] = cluster.hosts_of("ray::RayTrainWorker")
    cluster.hosts.power_off(lost)
    began = time.monotonic()
    faulty.wait_for_resume(step)
    times["a worker's host lost: the trial resumes elsewhere"] = time.monotonic() - began
    assert cluster.hosts_of("ray::RayTrainWorker") == [name for name in WORKERS if name != lost]
    cluster.hosts.boot(lost)
    began = time.monotonic()
    cluster.wait_for_nodes("head", *WORKERS)
    times["a worker's host is back: its node alive"] = time.monotonic() - began
    faulty.wait_for_checkpoints()


def test_storage_is_unavailable(faulty: Faulty, times: dict[str, float]) -> None:
    step, starts = faulty.wait_for_checkpoints(), faulty.job.log.count("single on 1 worker")
    faulty.cluster.hosts.cable(STORAGE, plugged=False)
    time.sleep(OUTAGE_SECONDS)
    faulty.cluster.hosts.cable(STORAGE, plugged=True)
    began = time.monotonic()
    assert faulty.wait_for_checkpoints() > step
    assert faulty.job.log.count("single on 1 worker") == starts, "the trial restarted"
    times["the storage unavailable for 30 s: the next checkpoint"] = time.monotonic() - began


def test_mlflow_is_unavailable(faulty: Faulty) -> None:
    hosts = faulty.cluster.hosts
    run(*hosts.ssh_words("head"), 'pkill -9 -f "mlflow[ ./]server"')
    faulty.job.until("MLflow at .* is unavailable")
    faulty.wait_for_checkpoints()
    start = yaml.safe_load(faulty.cluster.file.read_text())["head_start_ray_commands"][1]
    assert hosts.ssh("head", start).returncode == 0
    faulty.job.until("MLflow at .* is available again")


def test_stopped_job_resumes(faulty: Faulty, times: dict[str, float]) -> None:
    faulty.wait_for_checkpoints()
    before = runs_of(NAME)
    began = time.monotonic()
    faulty.job.stop()
    times["ray job stop"] = time.monotonic() - began
    assert "run the same command again to resume" in faulty.job.log, faulty.job.log
    step = faulty.saved
    faulty.submit()
    assert faulty.wait_for_resume(step) == step
    assert runs_of(NAME) == before


def test_head_is_lost(faulty: Faulty, times: dict[str, float]) -> None:
    cluster, before = faulty.cluster, runs_of(NAME)
    step = faulty.wait_for_checkpoints()
    cluster.hosts.power_off("head")
    faulty.job.wait()
    began = time.monotonic()
    cluster.hosts.boot("head")
    cluster.up()
    cluster.wait_for_nodes("head", *WORKERS)
    times["the head lost: ray up, all nodes alive"] = time.monotonic() - began
    faulty.submit()
    faulty.wait_for_resume(step)
    times["the head lost: the trial resumes"] = time.monotonic() - began
    assert runs_of(NAME) == before


def test_worker_host_is_lost_during_scoring(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    scores = cluster.folder(NAME) / "scores" / TRIAL

    def answers() -> dict[str, str]:
        lines = [line for path in scores.glob("*.journal") for line in path.open().readlines()[1:]]
        return {row["id"]: row["text"] for row in map(json.loads, lines)}

    wait_for(lambda: len(answers()) >= 10, "ten answers", 600)
    [lost] = cluster.hosts_of("VLLM::EngineCore")
    cluster.hosts.power_off(lost)
    began, finished = time.monotonic(), answers()
    left = [name for name in WORKERS if name != lost]
    faulty.job.wait_for(lambda: cluster.hosts_of("VLLM::EngineCore") == left, "an engine elsewhere")
    before = answers()  # including those that were in flight
    faulty.job.wait_for(lambda: set(answers()) - set(before), "further answers")
    times["the engine's host lost: the next answer"] = time.monotonic() - began
    cluster.hosts.boot(lost)
    assert faulty.job.wait() == 0, faulty.job.log
    tables = [pq.read_table(path).to_pylist() for path in scores.glob("*.parquet")]
    stored = {row["id"]: row["text"] for table in tables for row in table}
    assert len(stored) == 200 and finished.items() <= stored.items()


def test_every_report_arrived_once(faulty: Faulty) -> None:
    client, run_id = MlflowClient(MLFLOW), runs_of(NAME)[TRIAL]
    assert client.get_run(run_id).info.status == "FINISHED"
    history = client.get_metric_history(run_id, "nll")
    assert len({metric.step for metric in history}) >= STEPS / 2 - 1
    reports = [(metric.step, metric.value, metric.timestamp) for metric in history]
    assert len(reports) == len(set(reports))


def test_ray_down_leaves_nothing_running(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    cluster.wait_for_nodes("head", *WORKERS)
    began = time.monotonic()
    cluster.down()
    for name in ("head", *WORKERS):
        wait_for(lambda name=name: not cluster.hosts.processes(name), f"{name} idle", 30)
    times["ray down, until nothing runs"] = time.monotonic() - began
