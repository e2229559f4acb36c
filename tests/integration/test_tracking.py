"""What is written to MLflow comes back through its own client."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from evals.benchmark import TaskScore
from pipelines.tracking import EXPERIMENT, Tracker, store_uri

pytestmark = pytest.mark.integration


def test_a_sweep_that_is_interrupted_goes_on_in_the_same_runs(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    first = Tracker(uri, "sweep")
    with pytest.raises(KeyboardInterrupt), first.run({"trials": 2}, {"git_commit": "abc"}):
        child = first.start_trial("sft-seed0", {"optim.lr": 3e-4, "arm": "sft"})
        first.log("sft-seed0", {"nll": 2.0, "system/cpu": 50.0}, step=1)
        raise KeyboardInterrupt

    again = Tracker(uri, "sweep")
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
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
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
    for name in ("a", "b"):
        tracker = Tracker(uri, name)
        with tracker.run({}, {}) as outcome:
            ids |= {tracker.run_id(), tracker.start_trial("sft-seed0", {})}
            outcome.ok = True
    assert len(ids) == 4
    with pytest.raises(KeyError):
        Tracker(uri, "c").run_id()


def test_a_failed_sweep_is_recorded_as_failed(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep")
    with pytest.raises(RuntimeError), tracker.run({}, {}):
        run_id = tracker.run_id()
        raise RuntimeError
    assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"
