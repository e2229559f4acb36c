"""MLflow is unavailable for a while: the run continues, and everything arrives later, once."""

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

from pipelines.tracking import delivery
from pipelines.tracking import tracker as tracking
from pipelines.tracking.tracker import Tracker, store_uri
from tests.assets.mlflow_server import Server, StoredRun, stored_runs
from tests.assets.newcomer import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
TRIAL, PARAMS = "sft-seed0", {"lr": 0.1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs when a test begins, and when it ends."""
    made = Server(tmp_path_factory.mktemp("server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def sweep_id(request: pytest.FixtureRequest) -> str:
    """An id of this test alone."""
    return re.sub("[^a-z_]", "", request.node.name)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up and try again sooner than a real run does."""
    monkeypatch.setattr(delivery, "_SECONDS", "2")
    monkeypatch.setattr(delivery, "_PAUSES", (0.2,))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines on the terminal."""
    lines: list[str] = []
    monkeypatch.setattr(tracking.console, "note", lines.append)
    return lines


def metrics(step: int) -> dict[str, float]:
    return {"nll": step / 7, "loss": -float(step)}


def log(tracker: Tracker, steps: range) -> None:
    """Report steps while the trial trains."""
    for step in steps:
        tracker.log(TRIAL, metrics(step), step)


def end(tracker: Tracker, steps: range, checkpoint: Path | None = None) -> None:
    """Do what a command does when the trial has ended, with its results from disk."""
    tracker.reconcile(TRIAL, PARAMS, ((step, metrics(step)) for step in steps))
    tracker.end(TRIAL, ok=True)
    if checkpoint is not None:
        checkpoint.mkdir(exist_ok=True)
        tracker.register(TRIAL, checkpoint)


def wait_until(condition: Callable[[], Any]) -> None:
    while not condition():
        time.sleep(0.05)


def check_runs(uri: str, sweep_id: str, steps: range) -> StoredRun:
    """Check that both runs have ended, and that the trial has every step once."""
    runs = stored_runs(uri, f"tags.`otr.id` = '{sweep_id}'")
    assert set(runs) >= {"sweep", TRIAL}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    trial = runs[TRIAL]
    assert trial.parent == "sweep" and trial.params == {"lr": "0.1"}
    for key in ("nll", "loss"):
        assert trial.metrics[key] == [(step, metrics(step)[key]) for step in steps]
    return trial


@pytest.mark.parametrize(("leave", "come_back"), [("kill", "start"), ("freeze", "thaw")])
def test_a_server_that_is_unavailable_for_a_while(
    server: Server, tmp_path: Path, sweep_id: str, notes: list[str], leave: str, come_back: str
) -> None:
    tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, PARAMS)
        log(tracker, range(5))
        run_id = tracker.run_id(TRIAL)
        getattr(server, leave)()
        log(tracker, range(5, 205))  # returns before the server comes back
        wait_until(lambda: notes)
        assert tracker.run_id(TRIAL) == run_id is not None
        log(tracker, range(205, 210))
        getattr(server, come_back)()
        wait_until(lambda: len(notes) == 2)
        log(tracker, range(210, 215))
        tracker.end(TRIAL, ok=True)
        outcome.ok = True
    assert re.fullmatch(f"MLflow at {server.uri} is unavailable .*: the run continues.*", notes[0])
    assert notes[1:] == [f"MLflow at {server.uri} is available again"]
    check_runs(server.uri, sweep_id, range(215))


def test_an_outage_of_hours_costs_no_memory_and_no_report(
    server: Server, tmp_path: Path, sweep_id: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "_MAX_WAITING", 20)
    tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, PARAMS)
        log(tracker, range(5))
        assert tracker.run_id(TRIAL) is not None
        server.freeze()
        log(tracker, range(5, 305))
        wait_until(lambda: notes)
        waiting = tracker._delivery.wait(0)
        assert waiting <= 20 + delivery._MAX_BATCH, "those queued, and a batch under way"
        server.thaw()
        wait_until(lambda: len(notes) == 2)
        log(tracker, range(305, 310))
        end(tracker, range(310))
        outcome.ok = True
    check_runs(server.uri, sweep_id, range(310))


def test_a_server_that_comes_back_when_the_run_is_over(
    server: Server, tmp_path: Path, sweep_id: str, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "DRAIN_SECONDS", 0)
    server.kill()
    first = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with first.run({}, {}) as outcome:
        first.start_trial(TRIAL, PARAMS)
        log(first, range(5))
        assert first.run_id(TRIAL) is None
        end(first, range(5))
        outcome.ok = True
    assert notes[-1] == (
        f"MLflow at {server.uri} is still unavailable: all results are on disk, and the same "
        "command again sends them"
    )

    server.start()
    again = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with again.run({}, {}) as outcome:
        end(again, range(5))
        outcome.ok = True
    check_runs(server.uri, sweep_id, range(5))


def test_a_store_that_another_process_has_locked(
    tmp_path: Path, sweep_id: str, notes: list[str]
) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(TRIAL, PARAMS)
        log(tracker, range(5))
        assert tracker.run_id(TRIAL) is not None
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
            other.execute("BEGIN EXCLUSIVE")
            log(tracker, range(5, 205))
            wait_until(lambda: notes)
        tracker.end(TRIAL, ok=True)
        outcome.ok = True
    assert "locked" in notes[0] and "is available again" in notes[1] and len(notes) == 2
    check_runs(uri, sweep_id, range(205))


DRIVER = """
import os, signal, sys
from pathlib import Path
from tests.pipelines.tracking.test_mlflow_faults import PARAMS, TRIAL, Tracker, log
uri, sweep_id, directory, arrive = sys.argv[1:]
tracker = Tracker(uri, "sweep", sweep_id, Path(directory))
with tracker.run({}, {}):
    tracker.start_trial(TRIAL, PARAMS)
    log(tracker, range(int(arrive)))
    if int(arrive):
        assert tracker.run_id(TRIAL) is not None
    log(tracker, range(int(arrive), 50))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("arrived", [0, 20])
def test_a_driver_that_is_killed(
    server: Server, tmp_path: Path, sweep_id: str, notes: list[str], arrived: int
) -> None:
    """The next start resumes from the checkpoint of step 40; the results on disk have all steps."""
    if not arrived:
        server.freeze()
    words = [sys.executable, "-c", DRIVER, server.uri, sweep_id, str(tmp_path), str(arrived)]
    assert subprocess.run(words, cwd=REPOSITORY, check=False).returncode == -signal.SIGKILL
    server.thaw()
    for live in (range(40, 70), range(0)):  # then the same command once more
        tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
        with tracker.run({}, {}) as outcome:
            if live:
                tracker.start_trial(TRIAL, PARAMS)
                log(tracker, live)
            end(tracker, range(70), tmp_path / "step-000070")
            outcome.ok = True
    assert notes == []
    trial = check_runs(server.uri, sweep_id, range(70))
    assert trial.versions == ["runs:/RUN/step-000070"]


def test_a_refused_request_does_not_stop_the_others(
    server: Server, tmp_path: Path, sweep_id: str, notes: list[str]
) -> None:
    """The user deletes the run of another trial, and a name is too long for MLflow."""
    tracker = Tracker(server.uri, "sweep", sweep_id, tmp_path)
    with tracker.run({}, {}) as outcome:
        tracker.start_trial("other", {})
        MlflowClient(server.uri).delete_run(tracker.run_id("other") or "")
        for step in (1, 2):
            tracker.log("other", {"nll": float(step)}, step)
        tracker.start_trial(TRIAL, PARAMS)
        tracker.log(TRIAL, {"long" * 100: 1.0}, 0)
        log(tracker, range(5))
        tracker.end(TRIAL, ok=True)
        assert tracker.run_id(TRIAL) is not None
        assert len(notes) == 2, "one line per cause"
        tracker.reconcile("other", {}, [(step, {"nll": float(step)}) for step in (1, 2)])
        tracker.end("other", ok=True)
        outcome.ok = True
    assert "refused log of other" in notes[0] and "deleted" in notes[0] and len(notes) == 2
    refused = (tmp_path / "logs" / "driver.log").read_text().splitlines()
    assert [re.findall(r"refused log of (\S+) \(Report\(step=(\d+)", line) for line in refused] == [
        [("other", "1")],
        [("other", "2")],
        [(TRIAL, "0")],
    ]
    check_runs(server.uri, sweep_id, range(5))
    other = stored_runs(server.uri, f"tags.`otr.id` = '{sweep_id}'")["other"]
    assert other.metrics == {"nll": [(1, 1.0), (2, 2.0)]}, (
        "a new run takes the place of the deleted"
    )
