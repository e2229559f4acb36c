"""A sweep that is decided by answers, with the real engine."""

import json
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from evals.settings import free_port
from tests.assets.newcomer import run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


RECIPE = """
preset = "debug"
benchmarks = ["builtin:target-heldout"]
search.benchmark = "builtin:validation-questions"
search.metric = "answers"

[arms.whole]
objective.name = "sft"

[arms.adapters]
objective.name = "sft"
lora.rank = 4
"""


def test_checkpoints_are_scored_while_their_trial_trains(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    line = [sys.executable, "pipelines/full_sweep.py", "--config", str(recipe), "--name", "judged"]
    done = run([*line, "--output", str(tmp_path), "--engine.port", str(free_port())])
    assert done.returncode == 0, done.stderr
    assert "scores each trial on builtin:validation-questions every 3 steps" in done.stdout
    assert "the base model answers" in done.stderr
    folder = tmp_path / "judged" / "judged"
    trials = {"whole-seed0", "adapters-seed0"}
    assert {path.name for path in folder.iterdir()} == {"base", *trials}
    entries = json.loads((tmp_path / "judged" / "leaderboard.json").read_text())
    validation = {entry["trial"]: entry["validation"] for entry in entries}
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'otr'")
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs([experiment.experiment_id])}
    for trial in trials:
        scored = {path.parent.name: path for path in folder.glob(f"{trial}/*/*.json")}
        assert set(scored) == {"step-000003", "step-000006"}
        reports = tmp_path / "judged" / "trials" / trial / "result.json"
        rows = map(json.loads, reports.read_text().splitlines())
        history = {row["step"]: row for row in rows}
        assert validation[trial]["answers"] == history[6]["answers"]
        for name, path in scored.items():
            row = history[int(name.removeprefix("step-"))]
            assert row["answers"] == json.loads(path.read_text())["score"]["value"]
            assert 0 < row["answers_se"] < 0.3
        assert "answers" not in history[4], "only at evaluations"
        curve = client.get_metric_history(runs[trial], "curves/answers")
        assert {m.step for m in curve} == {3, 6}
    assert "answers to the search's benchmark" in (tmp_path / "judged" / "report.html").read_text()
