"""`otr train`, then the command that it suggests next, `otr score`, with fewer items."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from evals.records import read_answers
from evals.settings import free_port
from tests.assets.mlflow_server import stored_runs
from tests.assets.newcomer import run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def said_by(words: list[str]) -> str:
    done = run(words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_train_on_a_file_and_score_what_comes_out(tmp_path: Path) -> None:
    """An adapter; test_sweep.py trains and scores whole models."""
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(64)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "runs"
    line = ["--data", str(data), "--columns", "prompt=question", "completion=answer"]
    line += ["--train.data.sequence-length", "256", "--max-steps", "2", "--output", str(output)]
    line += ["--train.lora.rank", "4"]
    done = run([sys.executable, "pipelines/train_one.py", *line, "--name", "mine"])
    assert done.returncode == 0, done.stderr
    assert "✓ serve      vLLM and transformers predict the same" in done.stderr
    said = done.stdout
    checkpoint = output / "mine" / "trials" / "train-seed0" / "train" / "step-000002"
    assert str(checkpoint) in said and "step 2: nll " in said
    assert (checkpoint / "adapter_model.safetensors").is_file()
    run_json = json.loads((output / "mine" / "run.json").read_text())
    assert run_json["config"]["train"]["max_steps"] == 2 and len(run_json["id"]) == 32

    (score,) = (s for s in said.splitlines() if "# score it" in s)
    words = shlex.split(score.partition("  # ")[0])
    options = ["--preset", "debug", "--max-items", "2", "--engine.port", str(free_port())]
    assert words[-2:] == ["--output", str(output)]
    said = said_by([*words, *options, "--name", "scored"])
    scores = json.loads((output / "scored" / "scores.json").read_text())
    assert [s["task"] for s in scores] == ["target-heldout", "retained-code"]
    for each in scores:
        assert each["task"] in said and each["num_examples"] == 2
        answers = output / "scored" / "scores" / "model" / f"{each['task']}.parquet"
        assert len(read_answers(answers)) == 2
    stored = stored_runs(f"sqlite:///{output / 'mlflow.db'}")["scored"]
    assert stored.status == "FINISHED" and stored.params["model"] == str(checkpoint)
    assert stored.metrics["score/target-heldout"] == [(0, scores[0]["value"])]
