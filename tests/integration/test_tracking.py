"""What is written to MLflow comes back through its own client."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from evals.benchmark import TaskScore
from pipelines.config.presets import PRESETS
from pipelines.runtime import console
from pipelines.tracking.mlflow_store import EXPERIMENT, Store
from pipelines.tracking.tracker import Tracker, check_store, store_uri
from pipelines.tracking.trial_callbacks import Watcher, settle
from tests.assets.mlflow_server import Server
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
    made = Server(tmp_path)
    made.start()
    yield made.uri
    made.kill()


def test_a_sweep_that_is_interrupted_goes_on_in_the_same_runs(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    first = Tracker(uri, "sweep", "1", tmp_path)
    with pytest.raises(KeyboardInterrupt), first.run({"trials": 2}, {"git_commit": "abc"}):
        first.start_trial("sft-seed0", {"optim.lr": 3e-4, "arm": "sft"})
        child = first.run_id("sft-seed0")
        for step in (1, 2, 3, 2):  # a worker died, and took the second step again
            first.log("sft-seed0", {"nll": 2.0 / step, "system/cpu": 50.0}, step=step)
        raise KeyboardInterrupt

    again = Tracker(uri, "sweep", "1", tmp_path)
    with again.run({"trials": "another value"}, {}) as outcome:
        again.start_trial("sft-seed0", {"optim.lr": "another"})
        assert again.run_id("sft-seed0") == child is not None
        for step in (2, 3, 4):  # from a checkpoint before the last steps that it reported
            again.log("sft-seed0", {"nll": 2.0 / step}, step=step)
        again.end("sft-seed0", ok=True)
        for low in (0.3, 0.4, 0.4):
            also = {"pass@2": [0.7, 0.6, 0.8]}
            score = TaskScore("gsm8k@2", "avg@2", 0.5, low, 0.6, 100, {}, also)
            again.log_scores("sft-seed0", [score])
        answers = tmp_path / "gsm8k@2.parquet"
        answers.write_bytes(b"PAR1")
        again.keep([answers], "sft-seed0", "answers")
        page = tmp_path / "report.html"
        page.write_text("<p>")
        again.keep([page])
        checkpoint = tmp_path / "step-000002"
        checkpoint.mkdir()
        again.register("sft-seed0", checkpoint)
        again.register("sft-seed0", checkpoint)
        outcome.ok = True

    client = MlflowClient(uri)
    runs = runs_of(uri)
    assert set(runs) == {"sweep", "sft-seed0"}
    parent, trial = runs["sweep"], runs["sft-seed0"]
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, trial.info.status) == ("FINISHED", "FINISHED")
    assert (parent.data.params["trials"], trial.data.params["optim.lr"]) == ("2", "0.0003")
    history = client.get_metric_history(child, "nll")
    assert [(m.step, m.value) for m in history] == [(n, 2.0 / n) for n in (1, 2, 3, 4)]
    scores = [client.get_metric_history(child, f"score/gsm8k_at_2{end}") for end in ("", "_low")]
    assert [[m.value for m in score] for score in scores] == [[0.5], [0.3, 0.4]]
    assert trial.data.metrics["score/gsm8k_at_2_low"] == 0.4
    assert trial.data.metrics["score/gsm8k_at_2/pass_at_2_high"] == 0.8
    assert trial.data.metrics["system/cpu"] == 50.0
    assert [a.path for a in client.list_artifacts(parent.info.run_id)] == ["report.html"]
    kept = [a.path for a in client.list_artifacts(child, "answers")]
    assert kept == ["answers/gsm8k@2.parquet"]
    (registered,) = client.search_model_versions("name = 'otr-sweep'")
    assert registered.run_id == child and registered.source.endswith("step-000002")


def test_two_sweeps_of_one_store_stay_apart(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    ids = set()
    for name, sweep_id in (("a", "1"), ("b", "2"), ("b", "3")):  # b: begun anew, or another user's
        tracker = Tracker(uri, name, sweep_id, tmp_path / sweep_id)
        with tracker.run({}, {}) as outcome:
            tracker.start_trial("sft-seed0", {})
            ids |= {tracker.run_id(), tracker.run_id("sft-seed0")}
            outcome.ok = True
    assert len(ids - {None}) == 6


def test_a_server_gets_the_model_itself(server: str, tmp_path: Path) -> None:
    """It refuses a path of this machine as the source of a model."""
    tracker = Tracker(server, "sweep", "1", tmp_path)
    checkpoint = tmp_path / "step-000002"
    (checkpoint / "trainer").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "trainer/state.json"):
        (checkpoint / name).write_text(name)
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "scores.svg").write_text("<svg/>")
    with tracker.run({}, {}) as outcome:
        tracker.start_trial("sft-seed0", {})
        run_id = tracker.run_id("sft-seed0")
        assert run_id is not None
        tracker.keep([figures])
        tracker.keep([checkpoint / "config.json"], "sft-seed0", "answers")
        tracker.register("sft-seed0", checkpoint)
        tracker.register("sft-seed0", checkpoint)
        outcome.ok = True
    client = MlflowClient(server)
    (registered,) = client.search_model_versions("name = 'otr-sweep'")
    assert registered.source == f"runs:/{run_id}/step-000002"
    uploaded = [a.path for a in client.list_artifacts(run_id, "step-000002")]
    assert uploaded == ["step-000002/config.json", "step-000002/model.safetensors"]
    (figure,) = client.list_artifacts(tracker.run_id() or "", "figures")
    assert figure.path == "figures/scores.svg"
    assert [a.path for a in client.list_artifacts(run_id, "answers")] == ["answers/config.json"]


def test_a_trial_that_never_started_has_a_failed_run(tmp_path: Path) -> None:
    uri, trial = store_uri(str(tmp_path)), Trial("sft", {"objective.name": "sft"}, 0)
    tracker = Tracker(uri, "sweep", "1", tmp_path)
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
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    history = [{"step": 1, "nll": 2.0, "checkpoint_path": "x"}, {"step": 2, "nll": 1.0}]
    with tracker.run({}, {}) as outcome:
        tracker.start_trial(one.name, {})
        tracker.log(one.name, {"nll": 2.0}, 1)
        tracker.end(one.name, ok=True)
        assert tracker.run_id(one.name) is not None
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
    for run in (first, second):  # of the first one, the second report had not arrived
        metrics = MlflowClient(uri).get_metric_history(run.info.run_id, "nll")
        assert [(m.step, m.value) for m in metrics] == [(1, 2.0), (2, 1.0)]
    assert second.data.tags["mlflow.parentRunId"] == runs["sweep"].info.run_id


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "/tmp/mlruns"])
def test_a_store_of_plain_files_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI is .*give a server's address"):
        check_store(uri)


def test_a_password_is_not_shown() -> None:
    assert check_store("https://me:secret@host/a").startswith("https://host/a ")


def test_a_failed_sweep_is_recorded_as_failed(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    with pytest.raises(RuntimeError), tracker.run({}, {}):
        raise RuntimeError
    assert MlflowClient(uri).get_run(tracker.run_id() or "").info.status == "FAILED"


def test_a_trial_that_begins_twice_has_one_run_and_another_if_that_was_deleted(
    tmp_path: Path,
) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    with tracker.run({}, {}):
        ids = []
        for _ in range(3):
            tracker.start_trial("a", {"optim.lr": 1e-3})
            tracker.log("a", {"nll": 1.0}, step=1)
            ids.append(tracker.run_id("a"))
            if len(ids) == 2:
                MlflowClient(uri).delete_run(ids[0])
        one, again, other = ids
    assert one == again != other
    assert runs_of(uri)["a"].info.run_id == other


def test_a_run_whose_making_was_answered_too_late_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store_uri(str(tmp_path))
    store, start = Store(uri, "sweep", "1"), {"params": {}, "tags": {}, "time": 1}
    store.act({"do": "start", "trial": "", "name": "sweep", **start})
    make, lost = MlflowClient.create_run, []

    def late(self: MlflowClient, *args: Any, **options: Any) -> Any:
        run = make(self, *args, **options)
        if lost:
            return run
        lost.append(run.info.run_id)
        raise TimeoutError

    monkeypatch.setattr(MlflowClient, "create_run", late)
    with pytest.raises(TimeoutError):
        store.act({"do": "start", "trial": "a", "name": "a", **start})
    store.act({"do": "start", "trial": "a", "name": "a", **start})
    assert lost == [store.runs["a"]]
