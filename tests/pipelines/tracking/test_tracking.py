"""What `Tracker` records can be read back through MLflow's own client."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from evals.benchmark import TaskScore
from pipelines.config.presets import PRESETS
from pipelines.runtime import console
from pipelines.tracking.mlflow_store import SWEEP, Store
from pipelines.tracking.tracker import Tracker, check_store, store_uri
from pipelines.tracking.trial_callbacks import (
    TrialRecorder,
    finalize_trial,
    report_metrics,
    trial_params,
)
from tests.assets.mlflow_server import Server, StoredRun, stored_runs
from tests.assets.newcomer import REPOSITORY
from tuning.space import Trial
from tuning.sweep import TrialResult

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
TRAIN = PRESETS["debug"]().train
TRIAL = Trial("sft", {"objective.name": "sft"}, 0)
HISTORY = [{"step": n, "nll": 2.0 / n, "at@n": n, "checkpoint_path": "x"} for n in (1, 2, 3, 4)]


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a sqlite store that does not exist yet, and of a server."""
    if request.param == "sqlite":
        yield store_uri(str(tmp_path))
        return
    server = Server(tmp_path)
    server.start()
    yield server.uri
    server.kill()


def run_files(directory: Path) -> tuple[Path, list[Path]]:
    """Write the files of a finished run; return the checkpoint, and what is recorded beside it."""
    checkpoint, figures, answers = (
        directory / name for name in ("step-000004", "figures", "gsm8k@2.parquet")
    )
    (checkpoint / "trainer").mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "trainer/state.json"):
        (checkpoint / name).write_text(name)
    figures.mkdir(exist_ok=True)
    (figures / "scores.svg").write_text("<svg/>")
    answers.write_bytes(b"PAR1")
    return checkpoint, [figures, answers]


def command(uri: str, directory: Path, live: Callable[[Tracker], None]) -> None:
    """Record what a command records of a sweep of one trial.

    `live` records what the trial reports while it trains: nothing where it has ended before.
    """
    checkpoint, (figures, answers) = run_files(directory)
    tracker = Tracker(uri, "sweep", "1", directory)
    with tracker.run({"trials": 1}, {"git_commit": "abc"}) as outcome:
        live(tracker)
        finalize_trial(
            tracker, TRAIN, TrialResult(TRIAL, "finished", HISTORY, str(checkpoint), None)
        )
        score = TaskScore("gsm8k@2", "avg@2", 0.5, 0.4, 0.6, 100, {}, {"pass@2": [0.7, 0.6, 0.8]})
        tracker.log_scores(TRIAL.name, [score])
        tracker.log_artifacts([answers], TRIAL.name, "answers")
        tracker.log_artifacts([figures])
        tracker.set_description("The winner is sft.")
        tracker.register(TRIAL.name, checkpoint)
        tracker.log_summary({"score/gsm8k@2": 0.5})
        outcome.ok = True
    assert not (directory / "logs" / "driver.log").exists(), "MLflow refused something"


def check_content(uri: str) -> dict[str, StoredRun]:
    """Check that a store holds all of the sweep of `command`, each thing once."""
    runs = stored_runs(uri)
    assert set(runs) == {"sweep", TRIAL.name}
    sweep, trial = runs["sweep"], runs[TRIAL.name]
    assert (sweep.status, trial.status, trial.parent) == ("FINISHED", "FINISHED", "sweep")
    assert sweep.params == {"trials": "1"} and sweep.tags["git_commit"] == "abc"
    assert sweep.artifacts == ["figures/scores.svg"]
    assert sweep.metrics == {"score/gsm8k_at_2": [(0, 0.5)]}, "a sweep can be sorted by it"
    assert trial.params["objective.name"] == "sft" and trial.params["arm"] == "sft"
    assert trial.tags["status"] == "finished" and trial.tags["checkpoint"].endswith("step-000004")
    assert trial.metrics["curves/nll"] == [(n, 2.0 / n) for n in (1, 2, 3, 4)]
    assert {key: values for key, values in trial.metrics.items() if key != "curves/nll"} == {
        "training/at_at_n": [(n, n) for n in (1, 2, 3, 4)],
        "score/gsm8k_at_2": [(0, 0.5)],
        "score/gsm8k_at_2_low": [(0, 0.4)],
        "score/gsm8k_at_2_high": [(0, 0.6)],
        "score/gsm8k_at_2/pass_at_2": [(0, 0.7)],
        "score/gsm8k_at_2/pass_at_2_low": [(0, 0.6)],
        "score/gsm8k_at_2/pass_at_2_high": [(0, 0.8)],
    }
    assert "answers/gsm8k@2.parquet" in trial.artifacts
    return runs


def test_a_command_that_is_interrupted_and_repeated(uri: str, tmp_path: Path) -> None:
    """A worker dies, then the driver is interrupted; the trial resumes from a checkpoint."""
    ids = []

    def begin(tracker: Tracker) -> None:
        tracker.start_trial(TRIAL.name, {"arm": "sft"})
        ids.append(tracker.run_id(TRIAL.name))
        for step in (1, 2, 3, 2):
            tracker.log(TRIAL.name, report_metrics(HISTORY[step - 1]), step)
        raise KeyboardInterrupt

    def resume(tracker: Tracker) -> None:
        tracker.start_trial(TRIAL.name, {"arm": "another value"})
        ids.append(tracker.run_id(TRIAL.name))
        for step in (2, 3, 4):
            tracker.log(TRIAL.name, report_metrics(HISTORY[step - 1]), step)

    with pytest.raises(KeyboardInterrupt):
        command(uri, tmp_path, begin)
    assert stored_runs(uri)["sweep"].status == "KILLED"
    command(uri, tmp_path, resume)
    first = check_content(uri)
    assert ids[0] == ids[1] is not None
    command(uri, tmp_path, lambda tracker: None)
    assert check_content(uri) == first
    trial = first[TRIAL.name]
    if uri.startswith("sqlite"):
        assert trial.versions == [(tmp_path / "step-000004").as_uri()]
        assert trial.artifacts == ["answers/gsm8k@2.parquet"]
    else:  # a server refuses a path of this machine as the source of a model
        assert trial.versions == ["runs:/RUN/step-000004"]
        assert trial.artifacts == [
            "answers/gsm8k@2.parquet",
            "step-000004/MLmodel",
            "step-000004/components/tokenizer/config.json",
            "step-000004/components/tokenizer/tokenizer.json",
            "step-000004/config.json",
            "step-000004/model.safetensors",
            "step-000004/tokenizer.json",
        ]


def test_an_empty_store_is_filled_by_the_same_command(tmp_path: Path) -> None:
    """The store has been deleted, or another one is given."""
    used, empty = store_uri(str(tmp_path / "used")), store_uri(str(tmp_path / "empty"))

    def live(tracker: Tracker) -> None:
        tracker.start_trial(TRIAL.name, trial_params(TRAIN, TRIAL))
        for report in HISTORY:
            tracker.log(TRIAL.name, report_metrics(report), int(report["step"]))

    command(used, tmp_path, live)
    command(empty, tmp_path, lambda tracker: None)
    assert check_content(empty) == check_content(used)


def test_history_that_the_store_lacks_is_filled_in(tmp_path: Path) -> None:
    """Of one trial a later process finds two of four reports, with the other ones in between."""
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    with tracker.run({}, {}):
        tracker.start_trial(TRIAL.name, {})
        for step in (2, 4):
            tracker.log(TRIAL.name, {"curves/nll": 2.0 / step}, step)
        tracker.end(TRIAL.name, ok=True)
        run_id = tracker.run_id(TRIAL.name) or ""
    ended = MlflowClient(uri).get_run(run_id).info.end_time
    time.sleep(0.01)
    command(uri, tmp_path, lambda tracker: None)
    stored = stored_runs(uri)[TRIAL.name]
    assert stored.metrics["curves/nll"] == [(n, 2.0 / n) for n in (1, 2, 3, 4)]
    assert MlflowClient(uri).get_run(run_id).info.end_time == ended, "its duration stays"


def test_scores_that_change_are_written_again(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    with tracker.run({}, {}):
        tracker.start_trial(TRIAL.name, {})
        for low in (0.3, 0.4, 0.4):
            tracker.log_scores(TRIAL.name, [TaskScore("sums", "acc", 0.5, low, 0.6, 100, {}, {})])
    metrics = stored_runs(uri)[TRIAL.name].metrics
    assert metrics["score/sums"] == [(0, 0.5)]
    assert metrics["score/sums_low"] == [(0, 0.3), (0, 0.4)]


def test_two_sweeps_of_one_store_stay_apart(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    ids = set()
    for name, sweep_id in (("a", "1"), ("b", "2"), ("b", "3")):  # b: restarted, or another user's
        tracker = Tracker(uri, name, sweep_id, tmp_path / sweep_id)
        with tracker.run({}, {}) as outcome:
            tracker.start_trial(TRIAL.name, {})
            ids |= {tracker.run_id(), tracker.run_id(TRIAL.name)}
            outcome.ok = True
    assert len(ids - {None}) == 6


def test_several_drivers_create_a_store_at_once(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from pipelines.tracking.tracker import Tracker
uri, name, directory = sys.argv[1:]
tracker = Tracker(uri, name, name, Path(directory))
print("ready", flush=True)
input()
with tracker.run({}, {}) as outcome:
    outcome.ok = True
"""
    uri, names = store_uri(str(tmp_path)), ["a", "b", "c"]
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", script, uri, name, str(tmp_path)],
            cwd=REPOSITORY,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    for driver in drivers:
        assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("\n")
        driver.stdin.flush()
    assert [driver.wait() for driver in drivers] == [0, 0, 0]
    assert {name: run.status for name, run in stored_runs(uri).items()} == dict.fromkeys(
        names, "FINISHED"
    )


def test_a_trial_that_never_started_has_a_failed_run(tmp_path: Path) -> None:
    uri = store_uri(str(tmp_path))
    tracker = Tracker(uri, "sweep", "1", tmp_path)
    with tracker.run({}, {}) as outcome, console.stage("train") as stage:
        recorder = TrialRecorder(tracker, TRAIN, stage, 1)
        tune_trial: Any = SimpleNamespace(config={"trial": asdict(TRIAL)})
        recorder.on_trial_error(1, [tune_trial], tune_trial)
        finalize_trial(tracker, TRAIN, TrialResult(TRIAL, "failed", [], None, "out of memory"))
        outcome.ok = True
    run = stored_runs(uri)[TRIAL.name]
    assert (run.status, run.tags["status"]) == ("FAILED", "failed")
    assert run.params["objective.name"] == "sft"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "/tmp/mlruns"])
def test_a_store_of_plain_files_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI is .*a server's address"):
        check_store(uri)


def test_a_password_is_not_shown() -> None:
    assert check_store("https://me:secret@host/a").startswith("https://host/a ")


def test_a_run_whose_creation_was_answered_too_late_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(store_uri(str(tmp_path)), "sweep", "1")
    store.start(SWEEP, {}, {}, 1)
    create, lost = MlflowClient.create_run, []

    def answer_too_late(self: MlflowClient, *args: Any, **options: Any) -> Any:
        run = create(self, *args, **options)
        if lost:
            return run
        lost.append(run.info.run_id)
        raise TimeoutError

    monkeypatch.setattr(MlflowClient, "create_run", answer_too_late)
    with pytest.raises(TimeoutError):
        store.start("a", {}, {}, 1)
    store.start("a", {}, {}, 1)
    assert lost == [store.run_ids["a"]]
