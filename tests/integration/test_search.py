"""A search of a tiny model under Ray Tune, whose driver is killed, and which then goes on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.settings import free_port
from otr.config import TrainConfig
from tests.assets import newcomer
from tests.assets.mlflow_server import stored_runs
from tests.integration import test_tuning
from tests.integration.test_tuning import ReportedSteps
from tests.integration.test_tuning import assets as assets
from tuning.arms import search_arms
from tuning.search import best_of, search
from tuning.searcher import LOG, SearchPlan
from tuning.settings import SearchSettings
from tuning.space import Trial
from tuning.sweep import Experiment

pytestmark = pytest.mark.integration

SETTINGS = SearchSettings(
    metric="val_nll",
    space={"optim.lr": "loguniform(1e-4,1e-2)", "objective.num_samples": "choice(4,16)"},
    budget="4 trials",
    max_concurrent=1,
)
ARMS = [Trial("sft", {"objective.name": "sft"}), Trial("otr")]


def config(directory: Path) -> TrainConfig:
    short = test_tuning.config(directory)
    return replace(short, max_steps=4, eval_interval=2, checkpoint_interval=1)


def plan(directory: Path) -> SearchPlan:
    arms = search_arms(config(directory), ARMS, SETTINGS.domains)
    return SearchPlan(tuple(arms), {"sft": 2, "otr": 2}, seed=7)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import _compat
from ray import tune
from tests.integration.test_search import SETTINGS, config, plan
from tuning.search import search
from tuning.sweep import Experiment

class Kill(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        if trial.config["trial"]["arm"] == "otr" and result.get("checkpoint_path"):
            os.kill(os.getpid(), signal.SIGKILL)

_compat.start_ray(num_cpus=4, log_to_driver=False)
directory = Path(sys.argv[1])
search(Experiment(config(directory), SETTINGS, sys.argv[2], "search", [Kill()]), plan(directory))
"""


@pytest.mark.faults
def test_a_killed_search_goes_on(assets: Path, tmp_path: Path, request: Any) -> None:
    """The first trial has ended, the second one resumes, and two more have other settings."""
    command = [sys.executable, "-c", KILLED, str(assets), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    root = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    log = tmp_path / "search" / LOG
    before = log.read_text()
    assert before.count('"suggested"') == 2 and before.count('"ended"') == 1
    request.getfixturevalue("ray_cluster")
    seen = ReportedSteps()
    experiment = Experiment(config(assets), SETTINGS, str(tmp_path), "search", [seen])
    with pytest.raises(ValueError, match="holds a search already"):
        search(experiment, plan(assets))
    results = search(experiment, plan(assets), resume=True)
    names = ["sft-0001", "sft-0002", "otr-0001", "otr-0002"]
    assert [result.trial.name for result in results] == names
    assert [result.status for result in results] == ["finished"] * 4
    assert log.read_text().startswith(before), "what was suggested stays"
    assert log.read_text().count('"suggested"') == log.read_text().count('"ended"') == 4
    assert seen.steps.get("sft-0001", [4]) == [4], "it does not train again"
    notes = [report.get("note", "") for report in results[2].history]
    assert any("resumes from step" in note for note in notes), "it started again from step 0"
    assert seen.steps["sft-0002"][-1] == 4
    rates = {result.trial.overrides["optim.lr"] for result in results}
    assert len(rates) == 2, "the random trials of both arms have the same rates"
    assert [*best_of(results, "val_nll")] == ["sft", "otr"]
    for result in results:
        assert result.trial.seed == 7 and result.history[-1]["step"] == 4
        assert result.checkpoint is None
        assert not [*(tmp_path / "search" / result.trial.name).glob("train/step-*")]
        report = json.loads((tmp_path / "search" / result.trial.name / "ended.json").read_text())
        assert report["val_nll"] == pytest.approx(result.history[-1]["val_nll"])
    seen = ReportedSteps()
    again = search(replace(experiment, callbacks=[seen]), plan(assets), resume=True)
    assert seen.steps == {} and again == results


def test_a_sweep_trains_what_its_search_has_found(tmp_path: Path) -> None:
    line = ["--preset", "debug", "--name", "found", "--output", str(tmp_path), "--seeds", "0"]
    line += ["--search", "optim.lr=loguniform(1e-5,1e-3)", "objective.num_samples=choice(4,16)"]
    line += ["--arms", "otr", "--budget", "2", "trials", "--search.metric", "val_nll"]
    line += ["--benchmarks", "builtin:target-heldout", "--engine.port", str(free_port())]
    done = newcomer.run([sys.executable, "pipelines/full_sweep.py", *line])
    assert done.returncode == 0, done.stderr
    assert "search: 2 trials" in done.stdout, "the plan"
    check_found(tmp_path)


def check_found(output: Path) -> None:
    """Check a run "found" with one trial of each arm in its search, and one seed in its sweep."""
    found = json.loads((output / "found" / "search.json").read_text())
    trials = {trial["trial"]: trial for trial in found["trials"]}
    assert [*trials] == ["sft-0001", "otr-0001"]
    _, *swept = json.loads((output / "found" / "leaderboard.json").read_text())
    assert [entry["trial"] for entry in swept] == ["sft-seed0", "otr-seed0"]
    for entry in swept:
        best = found["best"][entry["arm"]]
        assert entry["lr"] == best["values"]["optim.lr"] and entry["seed"] == 0
        assert trials[best["trial"]]["seed"] == found["plan"]["seed"] == 1
        assert entry["scores"] and entry["caveat"] == ""
    samples = found["best"]["otr"]["values"]["objective.num_samples"]
    assert swept[1]["objective"]["num_samples"] == samples
    assert "<h2>Search" in (output / "found" / "report.html").read_text()
    runs = stored_runs(f"sqlite:///{output / 'mlflow.db'}")
    assert {*trials, "sft-seed0", "otr-seed0"} <= runs.keys()
    assert runs["otr-0001"].tags["phase"] == "search" and "phase" not in runs["otr-seed0"].tags
    assert not [*(output / "found" / "search").glob("*/train/step-*")]
