"""What the callbacks of a sweep say and tag about a trial; a tracker in memory is MLflow."""

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig
from pipelines.runtime.console import Stage
from pipelines.tracking.trial_callbacks import TrialRecorder, finalize_trial, report_metrics
from tuning.space import Trial
from tuning.sweep import TrialResult

CONFIG = TrainConfig(ModelConfig("model"), DataConfig(("data",)))
TRIAL = Trial("sft", {}, 0)
LINE = "restarted, because the process of worker 0 was lost: goes on after step 30"
RESTART = {"step": 30, "nll": 1.0, "restart": LINE, "restarts": 1, "note": "ddp on 2 workers"}


class Tags:
    """A tracker that keeps tags and metrics and drops everything else."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.metrics: list[Any] = []

    def tag(self, trial: str, key: str, value: str) -> None:
        self.tags[key] = value

    def log(self, trial: str, metrics: Any, step: int) -> None:
        self.metrics.append(metrics)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def test_every_restart_is_a_line_and_a_tag(capsys: pytest.CaptureFixture[str]) -> None:
    tracker: Any = Tags()
    recorder = TrialRecorder(tracker, CONFIG, Stage("train"), 1)
    tune_trial: Any = SimpleNamespace(config={"trial": asdict(TRIAL)})
    for number in (1, 2):
        report = {**RESTART, "restarts": number}
        recorder.on_trial_result(1, [], tune_trial, report)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"sft-seed0: {LINE}") == 2 and said.count("ddp on 2 workers") == 1
    assert tracker.tags == {"restart_1_at_step_30": LINE, "restart_2_at_step_30": LINE}
    assert tracker.metrics[0] == {"curves/nll": 1.0, "training/restarts": 1.0}


def test_trials_that_an_interrupted_sweep_had_finished_count_as_done() -> None:
    stage = Stage("train")
    recorder = TrialRecorder(cast(Any, Tags()), CONFIG, stage, 3)
    trials: list[Any] = [
        SimpleNamespace(config={"trial": asdict(Trial(arm, {}, 0))}, is_finished=lambda f=f: f)
        for arm, f in (("sft", True), ("dft", False), ("otr", False))
    ]
    recorder.on_trial_start(0, trials, trials[1])
    assert stage.detail.startswith("1 of 3 trials done")
    recorder.on_trial_complete(1, trials, trials[1])
    recorder.on_trial_start(2, trials, trials[2])
    assert stage.detail.startswith("2 of 3 trials done")


def test_the_losses_come_first_on_the_page_of_a_run() -> None:
    report = {"step": 1, "loss": 1.0, "val_nll": 2.0, "lr": 0.1, "data_wait": 0.0, "tokens": 9.0}
    report |= {"save/write_seconds": 1.0, "rejected/broken": 1, "pid": 3, "note": "text"}
    names = set(report_metrics(report))
    losses = {"curves/loss", "curves/val_nll"}
    machine = {"system/data_wait", "system/save/write_seconds"}
    assert names == losses | machine | {"training/lr", "rejected/broken"}
    sections = {name.partition("/")[0] for name in names - machine} | {"score", "kl", "reference"}
    assert min(sections) == "curves", "MLflow sorts the sections"


def test_the_same_command_again_tags_the_restarts_that_are_on_disk() -> None:
    tracker: Any = Tags()
    history = [{"step": 10, "nll": 2.0}, RESTART]
    finalize_trial(tracker, CONFIG, TrialResult(TRIAL, "finished", history, None, None))
    assert tracker.tags["restart_1_at_step_30"] == LINE
