"""Sweeps under Ray Tune: a failing trial among good ones, early stopping, a killed driver."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from safetensors.torch import load_file

from otr.config import DataConfig, ModelConfig, TrainConfig
from tests.assets.tiny import make_tiny_model
from tuning.settings import SearchSettings
from tuning.space import Trial, grid
from tuning.sweep import Experiment, run

pytestmark = pytest.mark.integration


def config(directory: Path) -> TrainConfig:
    rows = str(directory / "rows.jsonl")
    return TrainConfig(
        ModelConfig(str(directory / "model")),
        DataConfig((rows,), sequence_length=64, validation=(rows,)),
        max_steps=12,
        global_batch_size=4,
        micro_batch_size=4,
        log_interval=2,
        eval_interval=4,
        checkpoint_interval=2,
    )


SEEDS = grid("sft", (0, 1, 2), **{"objective.name": "sft"})


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("assets")
    rows = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(60)]
    (directory / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_tiny_model(directory / "model")
    return directory


class ReportedSteps(tune.Callback):
    """Steps that each trial reported. Like a live display, it can't be pickled."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}
        self.stream = sys.__stdout__

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name = Trial(**trial.config["trial"]).name
        self.steps.setdefault(name, []).append(result["step"])


def test_a_failing_trial_ends_alone_and_a_worse_one_stops_early(
    ray_cluster: None, assets: Path, tmp_path: Path
) -> None:
    cpus = ray.cluster_resources()["CPU"]
    trials = [
        Trial("good", {"optim.lr": 1e-2}),
        Trial("bad", {"data.columns": {"prompt": "nothing"}, "data.validation": ()}),
        Trial("worse", {"optim.lr": 1e-9}),
    ]
    settings = SearchSettings("asha", "val_nll", grace_steps=4, max_concurrent=1)
    seen = ReportedSteps()
    experiment = Experiment(config(assets), settings, str(tmp_path), "s", [seen])
    good, bad, worse = run(experiment, trials)
    assert (good.status, good.error) == ("finished", None)
    assert [row["step"] for row in good.history] == [1, 2, 4, 6, 8, 10, 12]
    assert good.checkpoint == f"{tmp_path}/s/good-seed0/train/step-000012"
    assert (Path(good.checkpoint) / "model.safetensors").is_file()
    assert (bad.status, bad.history, bad.checkpoint) == ("failed", [], None)
    assert bad.error is not None and bad.error.startswith("60 of 60 records can't be used")
    assert worse.status == "stopped"
    assert worse.history[-1]["step"] < 12
    assert seen.steps["good-seed0"] == [1, 2, 4, 6, 8, 10, 12]
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < cpus and time.monotonic() < deadline:
        time.sleep(1)
    assert ray.available_resources()["CPU"] == cpus, "a stopped trial kept its CPUs"
    with pytest.raises(ValueError, match="holds a sweep already"):
        run(experiment, trials)


def judge_by_stillness(trial: str, step: int, path: str) -> dict[str, float]:
    """Score a checkpoint by how little its weights have moved; step 8 of one trial fails."""
    if (trial, step) == ("still-seed0", 8):
        raise RuntimeError("the engine is gone")
    base = load_file(Path(path).parents[3] / "model" / "model.safetensors")
    now = load_file(Path(path) / "model.safetensors")
    moved = sum(float((now[name] - base[name]).abs().sum()) for name in base)
    return {"answers": 1 / (1 + moved), "answers_se": 0.01}


def test_answers_decide_although_another_trial_has_the_lower_nll(
    ray_cluster: None, assets: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(assets / "model")
    trials = [Trial("still", {"optim.lr": 1e-9}), Trial("moved", {"optim.lr": 1e-2})]
    settings = SearchSettings("asha", "answers", "any", grace_steps=4, max_concurrent=1)
    own = replace(config(assets), checkpoint_interval=0)
    experiment = Experiment(own, settings, str(tmp_path), "s", judge=judge_by_stillness)
    still, moved = run(experiment, trials)
    assert [row["step"] for row in still.history if "answers" in row] == [4, 12]
    assert still.status == "finished" and still.history[-1]["answers_se"] == 0.01
    notes = {row["step"]: row["note"] for row in still.history if "note" in row}
    assert notes[8] == "step 8 has no score of answers: the engine is gone"
    assert (moved.status, moved.history[-1]["step"]) == ("stopped", 4)
    rows = ({row["step"]: row for row in each.history} for each in (still, moved))
    of_still, of_moved = (row[4] for row in rows)
    assert of_moved["val_nll"] < of_still["val_nll"]
    assert of_moved["answers"] < of_still["answers"]


def report_the_learning_rate(tune_config: dict[str, Any], **_: Any) -> None:
    """Report like a run whose validation loss is its learning rate, every second time."""
    trial = Trial(**tune_config["trial"])
    for step in (2, 4, 6, 8, 10, 12):
        loss = {} if step % 4 else {"val_nll": trial.overrides["optim.lr"]}
        tune.report({"step": step, **loss})


def test_median_stops_the_trial_that_is_worse_than_half_of_the_others(
    ray_cluster: None, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.sweep.run_trial", report_the_learning_rate)
    rates = {"first": 0.2, "second": 0.3, "third": 0.4, "worst": 0.9, "best": 0.1}
    trials = [Trial(name, {"optim.lr": rate}) for name, rate in rates.items()]
    settings = SearchSettings("median", "val_nll", grace_steps=6, max_concurrent=1)
    results = run(Experiment(config(assets), settings, str(tmp_path), "s"), trials)
    last = {each.trial.arm: (each.status, each.history[-1]["step"]) for each in results}
    assert last.pop("worst") == ("stopped", 8)
    assert set(last.values()) == {("finished", 12)}


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import _compat
from ray import tune
from tests.integration.test_tuning import SEEDS, config
from tuning.settings import SearchSettings
from tuning.sweep import Experiment, run

class Kill(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        if trial.config["trial"]["seed"] == 1 and result.get("checkpoint_path"):
            os.kill(os.getpid(), signal.SIGKILL)

os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "0"  # by default it depends on the machine's speed
_compat.start_ray(num_cpus=4, log_to_driver=False)
settings = SearchSettings(max_concurrent=1)
run(Experiment(config(Path(sys.argv[1])), settings, sys.argv[2], "s", [Kill()]), SEEDS)
"""


def test_a_killed_sweep_resumes(assets: Path, tmp_path: Path, request: Any) -> None:
    """The finished trial stays, the interrupted one resumes, the third one starts.

    With more steps than before, finished trials go on too.
    """
    command = [sys.executable, "-c", KILLED, str(assets), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    request.getfixturevalue("ray_cluster")
    seen = ReportedSteps()
    other = grid("dft", (0, 1), **{"objective.name": "dft"})
    experiment = Experiment(config(assets), SearchSettings(), str(tmp_path), "s", [seen])
    with pytest.raises(ValueError, match="a sweep of other trials"):
        run(experiment, other, resume=True)
    results = run(experiment, SEEDS, resume=True)
    assert [result.status for result in results] == ["finished"] * 3
    for result in results:
        assert result.history[-1]["step"] == 12
        assert Path(result.checkpoint or "", "model.safetensors").is_file()
    assert seen.steps.get("sft-seed0", [12]) == [12]
    assert seen.steps["sft-seed1"][0] > 1, "it started again from step 0"
    assert seen.steps["sft-seed1"][-1] == 12
    assert seen.steps["sft-seed2"] == [1, 2, 4, 6, 8, 10, 12]
    seen, longer = ReportedSteps(), replace(config(assets), max_steps=16)
    results = run(replace(experiment, config=longer, callbacks=[seen]), SEEDS, resume=True)
    for result in results:
        assert seen.steps[result.trial.name] == [12, 14, 16]
        assert (result.status, result.history[0]["step"]) == ("finished", 1)
        assert result.checkpoint == f"{tmp_path}/s/{result.trial.name}/train/step-000016"
    seen = ReportedSteps()
    experiment = replace(experiment, config=longer, callbacks=[seen])
    again = run(experiment, SEEDS, resume=True)
    assert seen.steps == {} and [result.status for result in again] == ["finished"] * 3
