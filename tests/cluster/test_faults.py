"""One sweep, from fault to fault: each time it goes on from where it was, in the same MLflow runs.

In order; each test begins where the one before has left the sweep.
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
AWAY_SECONDS = 30


class Faulty:
    """The sweep: its latest job, and how far it is."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.job: Job
        self.submit()

    def submit(self) -> None:
        """Once more, with the same command."""
        self.job = self.cluster.sweep(NAME, *OPTIONS)

    @property
    def saved(self) -> int:
        """The newest step with a checkpoint."""
        trial = self.cluster.folder(NAME) / "trials" / TRIAL / "train"
        return max((int(path.name[5:]) for path in trial.glob("step-*")), default=0)

    def saves(self, more: int = 1) -> int:
        """Wait for checkpoints to come; returns the newest step."""
        before = self.saved
        wait_for(lambda: self.job.ended() or self.saved >= before + more * SAVE, "a checkpoint")
        assert not self.job.ended(), self.job.log
        return self.saved

    def begins_again(self, at_least: int) -> int:
        """From which step the job says that it goes on, which must be of what was saved."""
        self.job.until(r"resumes from step \d+")
        step = int(re.findall(r"resumes from step (\d+)", self.job.log)[-1])
        assert at_least <= step <= self.saved, (at_least, step, self.saved)
        return step


@pytest.fixture(scope="module")
def faulty(cluster: Cluster) -> Iterator[Faulty]:
    cluster.hosts.boot("two")
    cluster.wait_for_nodes("head", *WORKERS)
    yield Faulty(cluster)


def test_a_worker_dies_and_the_trial_moves(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    step = faulty.saves(2)
    [lost] = cluster.hosts_of("ray::RayTrainWorker")
    cluster.hosts.power_off(lost)
    began = time.monotonic()
    faulty.begins_again(step)
    times["a worker's host lost: the trial goes on elsewhere"] = time.monotonic() - began
    assert cluster.hosts_of("ray::RayTrainWorker") == [name for name in WORKERS if name != lost]
    cluster.hosts.boot(lost)
    began = time.monotonic()
    cluster.wait_for_nodes("head", *WORKERS)
    times["a worker's host is back: its node is alive"] = time.monotonic() - began
    faulty.saves()


def test_the_storage_is_away(faulty: Faulty, times: dict[str, float]) -> None:
    step, begun = faulty.saves(), faulty.job.log.count("single on 1 worker")
    faulty.cluster.hosts.cable(STORAGE, plugged=False)
    time.sleep(AWAY_SECONDS)
    faulty.cluster.hosts.cable(STORAGE, plugged=True)
    began = time.monotonic()
    assert faulty.saves() > step
    assert faulty.job.log.count("single on 1 worker") == begun, "the trial began again"
    times["the storage away for 30 s: the next checkpoint"] = time.monotonic() - began


def test_mlflow_is_away(faulty: Faulty) -> None:
    hosts = faulty.cluster.hosts
    run(*hosts.ssh_words("head"), 'pkill -9 -f "mlflow[ ./]server"')
    faulty.job.until("MLflow at .* is away")
    faulty.saves()
    start = yaml.safe_load(faulty.cluster.file.read_text())["head_start_ray_commands"][1]
    assert hosts.ssh("head", start).returncode == 0
    faulty.job.until("MLflow at .* is back")


def test_a_stopped_job_goes_on(faulty: Faulty, times: dict[str, float]) -> None:
    faulty.saves()
    before = runs_of(NAME)
    began = time.monotonic()
    faulty.job.stop()
    times["ray job stop"] = time.monotonic() - began
    assert "run the same command again to resume" in faulty.job.log, faulty.job.log
    step = faulty.saved
    faulty.submit()
    assert faulty.begins_again(step) == step
    assert runs_of(NAME) == before


def test_the_head_is_lost(faulty: Faulty, times: dict[str, float]) -> None:
    cluster, before = faulty.cluster, runs_of(NAME)
    step = faulty.saves()
    cluster.hosts.power_off("head")
    faulty.job.wait()
    began = time.monotonic()
    cluster.hosts.boot("head")
    cluster.up()
    cluster.wait_for_nodes("head", *WORKERS)
    times["the head lost: ray up, all nodes alive"] = time.monotonic() - began
    faulty.submit()
    faulty.begins_again(step)
    times["the head lost: the trial goes on"] = time.monotonic() - began
    assert runs_of(NAME) == before


def test_a_worker_dies_while_it_scores(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    scores = cluster.folder(NAME) / "scores" / TRIAL

    def answers() -> dict[str, str]:
        lines = [line for path in scores.glob("*.journal") for line in path.open().readlines()[1:]]
        return {row["id"]: row["text"] for row in map(json.loads, lines)}

    wait_for(lambda: len(answers()) >= 10, "ten answers", 600)
    [lost] = cluster.hosts_of("VLLM::EngineCore")
    cluster.hosts.power_off(lost)
    began, had = time.monotonic(), answers()
    left = [name for name in WORKERS if name != lost]
    faulty.job.wait_for(lambda: cluster.hosts_of("VLLM::EngineCore") == left, "an engine elsewhere")
    before = answers()  # with those that were on their way
    faulty.job.wait_for(lambda: set(answers()) - set(before), "further answers")
    times["the engine's host lost: the next answer"] = time.monotonic() - began
    cluster.hosts.boot(lost)
    assert faulty.job.wait() == 0, faulty.job.log
    tables = [pq.read_table(path).to_pylist() for path in scores.glob("*.parquet")]
    kept = {row["id"]: row["text"] for table in tables for row in table}
    assert len(kept) == 200 and had.items() <= kept.items()


def test_every_report_arrived_once(faulty: Faulty) -> None:
    client, run_id = MlflowClient(MLFLOW), runs_of(NAME)[TRIAL]
    assert client.get_run(run_id).info.status == "FINISHED"
    history = client.get_metric_history(run_id, "nll")
    assert len({metric.step for metric in history}) >= STEPS / 2 - 1
    told = [(metric.step, metric.value, metric.timestamp) for metric in history]
    assert len(told) == len(set(told))


def test_nothing_is_left_running(faulty: Faulty, times: dict[str, float]) -> None:
    cluster = faulty.cluster
    cluster.wait_for_nodes("head", *WORKERS)
    began = time.monotonic()
    cluster.down()
    for name in ("head", *WORKERS):
        wait_for(lambda name=name: not cluster.hosts.processes(name), f"{name} idle", 30)
    times["ray down, and nothing runs"] = time.monotonic() - began
