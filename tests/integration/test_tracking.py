"""What is written to MLflow comes back through its own client."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from evals.benchmark import TaskScore
from pipelines import console
from pipelines.presets import PRESETS
from pipelines.tracking import EXPERIMENT, Tracker, store_uri
from pipelines.watch import Watcher, settle
from tests.assets.newcomer import free_port
from tuning.space import Trial
from tuning.sweep import TrialResult

pytestmark = pytest.mark.integration
TRAIN = PRESETS["debug"]().train


def runs_of(uri: str) -> dict[str, Any]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on this machine."""
    port = free_port()
    store, artifacts = f"sqlite:///{tmp_path}/server.db", f"{tmp_path}/artifacts"
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    words += ["--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=dict(os.environ))
    uri = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{uri}/health"):
                    break
            except OSError:
                time.sleep(0.2)
        yield uri
    finally:
        process.terminate()
        process.wait()


def test_a_sweep_that_is_interrupted_goes_on_in_the_same_runs(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    first = Tracker(uri, "sweep", "1")
    with pytest.raises(KeyboardInterrupt), first.run({"trials": 2}, {"git_commit": "abc"}):
        child = first.start_trial("sft-seed0", {"optim.lr": 3e-4, "arm": "sft"})
        first.log("sft-seed0", {"nll": 2.0, "system/cpu": 50.0}, step=1)
        raise KeyboardInterrupt

    again = Tracker(uri, "sweep", "1")
    with again.run({"trials": "another value"}, {}) as outcome:
        assert again.start_trial("sft-seed0", {"optim.lr": "another"}) == child
        again.log("sft-seed0", {"nll": 1.0}, step=2)
        again.end("sft-seed0", ok=True)
        again.log_scores("sft-seed0", [TaskScore("gsm8k", "accuracy", 0.5, 0.4, 0.6, 100, {})])
        page = tmp_path / "report.html"
        page.write_text("<p>")
        again.keep([page])
        checkpoint = tmp_path / "step-000002"
        checkpoint.mkdir()
        version = again.register("sft-seed0", checkpoint)
        assert again.register("sft-seed0", checkpoint) == version == "otr-sweep version 1"
        outcome.ok = True

    client = MlflowClient(uri)
    runs = runs_of(uri)
    assert set(runs) == {"sweep", "sft-seed0"}
    parent, trial = runs["sweep"], runs["sft-seed0"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, trial.info.status) == ("FINISHED", "FINISHED")
    assert (parent.data.params["trials"], trial.data.params["optim.lr"]) == ("2", "0.0003")
    history = client.get_metric_history(child, "nll")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    assert trial.data.metrics["score/gsm8k_low"] == 0.4
    assert trial.data.metrics["system/cpu"] == 50.0
    assert [a.path for a in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    (registered,) = client.search_model_versions("name = 'otr-sweep'")
    assert registered.run_id == child and registered.source.endswith("step-000002")


def test_two_sweeps_of_one_store_stay_apart(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    ids = set()
    for name, sweep_id in (("a", "1"), ("b", "2"), ("b", "3")):  # b: begun anew, or another user's
        tracker = Tracker(uri, name, sweep_id)
        with tracker.run({}, {}) as outcome:
            ids |= {tracker.run_id(), tracker.start_trial("sft-seed0", {})}
            outcome.ok = True
    assert len(ids) == 6
    with pytest.raises(KeyError):
        Tracker(uri, "c", "4").run_id()


def test_a_server_gets_the_model_itself(server: str, tmp_path: Path) -> None:
    """It refuses a path of this machine as the source of a model."""
    tracker = Tracker(server, "sweep", "1")
    checkpoint = tmp_path / "step-000002"
    checkpoint.mkdir()
    for name in ("model.safetensors", "config.json", "trainer_state.pt"):
        (checkpoint / name).write_text(name)
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "scores.svg").write_text("<svg/>")
    with tracker.run({}, {}) as outcome:
        run_id = tracker.start_trial("sft-seed0", {})
        tracker.keep([figures])
        version = tracker.register("sft-seed0", checkpoint)
        assert tracker.register("sft-seed0", checkpoint) == version == "otr-sweep version 1"
        outcome.ok = True
    client = MlflowClient(server)
    (registered,) = client.search_model_versions("name = 'otr-sweep'")
    assert registered.source == f"runs:/{run_id}/step-000002"
    uploaded = [a.path for a in client.list_artifacts(run_id, "step-000002")]
    assert uploaded == ["step-000002/config.json", "step-000002/model.safetensors"]
    (figure,) = client.list_artifacts(tracker.run_id(), "figures")
    assert figure.path == "figures/scores.svg"


def test_a_trial_that_never_started_has_a_failed_run(tmp_path: Path) -> None:
    uri, trial = store_uri(str(tmp_path)), Trial("sft", {"objective.name": "sft"}, 0)
    tracker = Tracker(uri, "sweep", "1")
    with tracker.run({}, {}) as outcome, console.stage("train") as stage:
        watcher = Watcher(tracker, TRAIN, stage, 1)
        of_tune: Any = SimpleNamespace(config={"trial": asdict(trial)})
        watcher.on_trial_error(1, [of_tune], of_tune)
        settle(tracker, TRAIN, TrialResult(trial, "failed", [], None, "no room"))
        outcome.ok = True
    run = runs_of(uri)["sft-seed0"]
    assert (run.info.status, run.data.tags["status"]) == ("FAILED", "failed")
    assert run.data.params["objective.name"] == "sft"


def test_how_a_trial_ended_is_told_also_in_a_store_that_was_deleted(tmp_path: Path) -> None:
    uri, (one, two) = store_uri(str(tmp_path)), [Trial("sft", {}, seed) for seed in (0, 1)]
    tracker = Tracker(uri, "sweep", "1")
    history = [{"step": 1, "nll": 2.0, "checkpoint_path": "x"}, {"step": 2, "nll": 1.0}]
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(one.name, {})
        tracker.end(one.name, ok=True)
        ended = runs_of(uri)[one.name].info.end_time
        time.sleep(0.01)
        settle(tracker, TRAIN, TrialResult(one, "finished", history, "/a/step-000002", None))
        settle(tracker, TRAIN, TrialResult(two, "stopped", history, None, None))
        outcome.ok = True
    runs = runs_of(uri)
    first, second = runs[one.name], runs[two.name]
    assert first.info.end_time == ended, "how long it took stays"
    assert first.data.tags["checkpoint"] == "/a/step-000002"
    assert [r.data.tags["status"] for r in (first, second)] == ["finished", "stopped"]
    assert [r.info.status for r in (first, second)] == ["FINISHED", "FINISHED"]
    metrics = MlflowClient(uri).get_metric_history(second.info.run_id, "nll")
    assert [(m.step, m.value) for m in metrics] == [(1, 2.0), (2, 1.0)]
    assert second.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id


def test_a_failed_sweep_is_recorded_as_failed(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1")
    with pytest.raises(RuntimeError), tracker.run({}, {}):
        run_id = tracker.run_id()
        raise RuntimeError
    assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"
