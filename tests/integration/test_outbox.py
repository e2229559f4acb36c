"""MLflow is away for a while: the run goes on, and everything arrives later, once."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.tracking import mlflow_sender, outbox
from pipelines.tracking import tracker as tracking
from pipelines.tracking.mlflow_store import EXPERIMENT
from pipelines.tracking.tracker import Tracker, store_uri
from tests.assets.mlflow_server import Server
from tests.assets.newcomer import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
TRIAL = "sft-seed0"
Expected = list[tuple[int, float]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs when a test begins, and when it ends."""
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def sweep_id(request: pytest.FixtureRequest) -> str:
    """Of this test alone."""
    return re.sub("[^a-z_]", "", request.node.name)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up and try again sooner than a real run does."""
    monkeypatch.setattr(mlflow_sender, "_SECONDS", "2")
    monkeypatch.setattr(outbox, "_PAUSES", (0.2,))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the console was given."""
    lines: list[str] = []
    monkeypatch.setattr(tracking.console, "note", lines.append)
    return lines


def log(tracker: Tracker, steps: range) -> Expected:
    for step in steps:
        tracker.log(TRIAL, {"nll": step / 7, "loss": -float(step)}, step)
    return [(step, step / 7) for step in steps]


def until(true: Callable[[], Any]) -> None:
    while not true():
        time.sleep(0.05)


def arrived(uri: str, sweep_id: str) -> tuple[dict[str, Any], Expected]:
    """The runs by name, none twice, and every value of the trial's NLL that the store has."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`otr.id` = '{sweep_id}'")
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs)
    histories = [client.get_metric_history(named[TRIAL].info.run_id, k) for k in ("nll", "loss")]
    assert [m.step for m in histories[0]] == [m.step for m in histories[1]]
    return named, sorted((m.step, m.value) for m in histories[0])


def check_both_ended(runs: dict[str, Any]) -> None:
    assert set(runs) == {"sweep", TRIAL}
    assert [run.info.status for run in runs.values()] == ["FINISHED", "FINISHED"]
    assert runs[TRIAL].data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id
    assert runs[TRIAL].data.params == {"lr": "0.1"}


@pytest.mark.parametrize(("leave", "come_back"), [("kill", "start"), ("freeze", "thaw")])
def test_a_server_that_is_away_for_a_while(
    server: Server, tmp_path: Path, sweep_id: str, told: list[str], leave: str, come_back: str
) -> None:
    tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, {"lr": 0.1})
        expected = log(tracker, range(5))
        run_id = tracker.run_id(TRIAL)
        getattr(server, leave)()
        expected += log(tracker, range(5, 205))  # comes back before the server does
        until(lambda: told)
        assert tracker.run_id(TRIAL) == run_id is not None
        expected += log(tracker, range(205, 210))
        getattr(server, come_back)()
        until(lambda: len(told) == 2)
        expected += log(tracker, range(210, 215))
        tracker.end(TRIAL, ok=True)
        outcome.ok = True
    assert re.fullmatch(f"MLflow at {server.uri} is away, .*outbox.jsonl.*", told[0])
    assert told[1:] == [f"MLflow at {server.uri} is back"]
    runs, values = arrived(server.uri, sweep_id)
    check_both_ended(runs)
    assert values == expected


def test_a_server_that_comes_back_when_the_run_is_over(
    server: Server, tmp_path: Path, sweep_id: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "DRAIN_SECONDS", 0)
    server.kill()
    first = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with first.run({}, {}) as outcome:
        first.start_trial(TRIAL, {"lr": 0.1})
        expected = log(first, range(5))
        assert first.run_id(TRIAL) is None
        first.end(TRIAL, ok=True)
        outcome.ok = True
    assert told[-1].startswith(f"9 entries for MLflow at {server.uri} wait in {tmp_path}")

    server.start()
    again = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with again.run({}, {}) as outcome:
        assert again.run_id(TRIAL) is not None, "what the first one left was sent"
        outcome.ok = True
    runs, values = arrived(server.uri, sweep_id)
    check_both_ended(runs)
    assert values == expected


def test_a_store_that_another_process_has_locked(
    tmp_path: Path, sweep_id: str, told: list[str]
) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, {"lr": 0.1})
        expected = log(tracker, range(5))
        assert tracker.run_id(TRIAL) is not None
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            expected += log(tracker, range(5, 205))
            until(lambda: told)
        tracker.end(TRIAL, ok=True)
        outcome.ok = True
    assert "locked" in told[0] and "is back" in told[1] and len(told) == 2
    runs, values = arrived(uri, sweep_id)
    check_both_ended(runs)
    assert values == expected


DRIVER = """
import os, signal, sys
from pathlib import Path
from pipelines.tracking import Tracker
tracker = Tracker(sys.argv[1], "sweep", sys.argv[2], Path(sys.argv[3]))
with tracker.run({}, {}):
    tracker.start_trial("sft-seed0", {"lr": 0.1})
    for step in range(50):
        tracker.log("sft-seed0", {"nll": step / 7, "loss": -float(step)}, step)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("position", ["kept", "lost"])
def test_a_driver_that_is_killed(
    server: Server, tmp_path: Path, sweep_id: str, told: list[str], position: str
) -> None:
    server.freeze()
    words = [sys.executable, "-c", DRIVER, server.uri, sweep_id, str(tmp_path)]
    assert subprocess.run(words, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    server.thaw()
    checkpoint = tmp_path / "step-000070"
    checkpoint.mkdir()
    for steps in (range(50, 60), range(60, 70)):
        tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
        with tracker.run({}, {}) as outcome:
            log(tracker, steps)
            tracker.end(TRIAL, ok=True)
            tracker.register(TRIAL, checkpoint)
            outcome.ok = True
        if position == "lost":  # as if it had been killed before it wrote that all had arrived
            (tmp_path / "outbox.sent").unlink()
    assert told == []
    runs, values = arrived(server.uri, sweep_id)
    check_both_ended(runs)
    assert values == [(step, step / 7) for step in range(70)]
    assert (
        len(MlflowClient(server.uri).search_model_versions(f"run_id = '{runs[TRIAL].info.run_id}'"))
        == 1
    )


def test_a_run_that_the_user_deleted_does_not_hold_up_the_others(
    server: Server, tmp_path: Path, sweep_id: str, told: list[str]
) -> None:
    tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial("other", {})
        MlflowClient(server.uri).delete_run(tracker.run_id("other") or "")
        tracker.log("other", {"nll": 1.0}, 1)
        tracker.log("other", {"nll": 2.0}, 2)
        tracker.start_trial(TRIAL, {"lr": 0.1})
        tracker.log(TRIAL, {"a key that no store takes: !": 1.0}, 0)
        expected = log(tracker, range(5))
        tracker.end(TRIAL, ok=True)
        outcome.ok = True
    assert len(told) == 2, "a line a cause"
    assert "refused" in told[0] and "deleted" in told[0]
    kept = [json.loads(x) for x in (tmp_path / "outbox.rejected.jsonl").read_text().splitlines()]
    assert [(k["entry"]["trial"], k["entry"]["step"]) for k in kept] == [
        ("other", 1),
        ("other", 2),
        (TRIAL, 0),
    ]
    runs, values = arrived(server.uri, sweep_id)
    check_both_ended(runs)
    assert values == expected
