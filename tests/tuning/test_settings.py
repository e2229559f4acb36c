"""Settings of a search that decides by answers, and what ASHA makes of a missing score."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig
from tests.benchmarks import judges
from tuning.schedulers import Asha
from tuning.settings import VALIDATION, SearchSettings, with_scored_checkpoints


def test_answers_need_a_benchmark() -> None:
    with pytest.raises(ValueError, match=r"as in --search\.benchmark gsm8k:items=1-200"):
        SearchSettings("asha", "answers")


def test_all_metrics_of_validation_are_known() -> None:
    """Importing `otr.loop.evaluate` takes seconds, so its names are listed."""
    source = Path(__file__).parents[2].joinpath("otr/loop/evaluate.py").read_text()
    assert {*re.findall(r'"(val_\w+)"', source)} == {*VALIDATION}


@pytest.mark.parametrize(("interval", "expected"), [(0, 50), (50, 50), (100, 50), (75, 25)])
def test_every_evaluation_has_a_checkpoint(interval: int, expected: int) -> None:
    config = TrainConfig(ModelConfig("model"), DataConfig(("data",)))
    config = replace(config, eval_interval=50, checkpoint_interval=interval)
    assert with_scored_checkpoints(config).checkpoint_interval == expected


def test_a_missing_score_is_unknown_to_asha() -> None:
    """It is neither the worst, which would stop the trial, nor one that others are compared to."""
    asha = Asha(time_attr="step", metric="answers", mode="max", max_t=64, grace_period=4)
    trials = [SimpleNamespace(trial_id=str(n)) for n in range(8)]
    controller: Any = None

    def decide(number: int, **scores: float) -> str:
        result = {"step": 4, "training_iteration": 1, **scores}
        return asha.on_trial_result(controller, trials[number], result)  # type: ignore[arg-type]

    for trial in trials:
        asha.on_trial_add(controller, trial)  # type: ignore[arg-type]
    decisions = [decide(n, answers=score) for n, score in enumerate((0.5, 0.9))]
    assert decisions == ["CONTINUE", "CONTINUE"]
    assert [decide(n) for n in (2, 3, 4)] == ["CONTINUE"] * 3
    assert decide(5, answers=0.4) == "STOP"
    assert decide(6, answers=0.95) == "CONTINUE"


def test_the_comparison_of_judges_finds_the_arm_that_each_measure_prefers() -> None:
    """Arms of which one is best by NLL and another by answers."""

    def recorded(arm: str, nll: float, answers: float) -> dict[str, Any]:
        curve = [
            {"step": step, "val_nll": nll} | dict.fromkeys(judges.METRICS[1:], answers)
            for step in judges.RUNGS
        ]
        final = {judges.TARGET: answers, "retained-code": 0.5}
        return {"arm": arm, "seed": 0, "curve": curve, "final": final, "seconds": {}}

    runs = [recorded(str(n), nll=n, answers=n / 10) for n in range(8)]
    assert judges.search(runs, "val_nll")[0]["arm"] == "0"
    found, steps = judges.search(runs, "answers")
    assert found["arm"] == "7" and steps <= 8 * judges.STEPS
    rows = {row["metric"]: row for row in judges.replay(runs, "target")}
    assert rows["answers"]["finds the best"] == 1 and rows["val_nll"]["finds the best"] == 0
    assert rows["val_nll"]["cost"] < 1
