"""The main job on a published data set and its benchmark, GSM8K."""

import json
import sys
from pathlib import Path

import pytest

from evals.records import read_answers
from evals.settings import free_port
from tests.assets.newcomer import run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def test_base_model_and_arm_are_scored(benchmark_dir: Path, tmp_path: Path) -> None:
    """The benchmark's column names, its own directory, few items and steps."""
    line = ["--data", f"{benchmark_dir}/gsm8k/train.jsonl"]
    line += ["--columns", "prompt=question", "completion=answer"]
    line += ["--benchmarks", "gsm8k", "--benchmark-dir", str(benchmark_dir), "--max-items", "4"]
    line += ["--engine.max-model-len", "1024"]  # the built-in model has no more positions
    line += ["--max-steps", "3", "--arms", "sft", "--seeds", "0"]
    line += ["--output", str(tmp_path), "--engine.port", str(free_port())]
    done = run([sys.executable, "pipelines/full_sweep.py", *line])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (board,) = tmp_path.glob("*/leaderboard.json")
    entries = {entry["trial"]: entry for entry in json.loads(board.read_text())}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "base": "base",
        "sft-seed0": "finished",
    }
    for name, entry in entries.items():
        assert list(entry["scores"]) == ["gsm8k"]
        score = entry["scores"]["gsm8k"]
        assert score["num_examples"] == 4
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
        answers = read_answers(board.parent / "scores" / name / "gsm8k.parquet")
        assert len(answers) == 4
