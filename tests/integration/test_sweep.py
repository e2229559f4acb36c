"""The main job with real Ray, vLLM and MLflow, as a newcomer runs it."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from evals.settings import free_port
from tests.assets.mlflow_server import stored_runs
from tests.assets.newcomer import REPOSITORY, environment, run

TRIALS = ["sft-seed0", "otr-k16-seed0"]
BENCHMARKS = ["target-heldout", "retained-code"]
OF_BASE = ["reference/nll", "reference/token_accuracy", "answers/mean_tokens", "answers/cut_share"]
MEASURES = [*OF_BASE[:2], "kl/target", "kl/general", *OF_BASE[2:]]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]


def command(how: list[str], output: Path, *options: str) -> list[str]:
    line = ["--preset", "debug", "--output", str(output), "--engine.port", str(free_port())]
    return [sys.executable, *how, *line, *options]


def sweep(how: list[str], output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(command(how, output, *options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A debug sweep whose driver was killed after the first trial, and that then was resumed.

    It starts as a module and resumes as a file.

    Returns:
        The output directory, and stdout of the second command.
    """
    output = tmp_path_factory.mktemp("runs")
    first = subprocess.Popen(
        command(["-m", "pipelines.full_sweep"], output, "--name", "debug"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        env=environment(),
    )
    while first.poll() is None and not [*output.glob("debug/trials/*/train/step-*")]:
        time.sleep(0.2)
    assert first.poll() is None, "the sweep ended before it could be killed"
    first.kill()
    first.wait()
    done = sweep(["pipelines/full_sweep.py"], output, "--name", "debug")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("continues")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 60, "one line per stage, no logs"
    return output, done.stdout


def test_the_table_and_the_next_commands_are_printed(finished: tuple[Path, str]) -> None:
    _, said = finished
    for name in ("base", "sft", "otr-k16", *BENCHMARKS, "tokens/s"):
        assert name in said
    lines = [line for line in said.splitlines() if line.startswith("  ") and "  # " in line]
    commands = [shlex.split(line.partition("  # ")[0]) for line in lines]
    assert [Path(words[0]).absolute() for words in commands] == [Path(sys.executable)] * 4
    assert commands[0][1:3] == ["-m", "webbrowser"] and Path(commands[0][3]).is_file()
    scripts = ["ui.py", "score_checkpoint.py", "show_scores.py"]
    assert [Path(words[1]).name for words in commands[1:]] == scripts
    assert (Path(commands[2][2]) / "model.safetensors").is_file()


def test_the_leaderboard_has_an_entry_per_model(
    finished: tuple[Path, str],
) -> None:
    output, _ = finished
    rows = json.loads((output / "debug" / "leaderboard.json").read_text())
    assert [row["trial"] for row in rows] == ["base", *TRIALS]
    for row in rows:
        assert list(row["scores"]) == BENCHMARKS
        for score in row["scores"].values():
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
            assert score["low"] < score["high"]
            assert score["num_examples"] == 8
    for row in rows[1:]:
        assert row["tokens"] > 0 and row["seconds"] > 0
        assert row["status"] == "finished" and row["tokens_per_second"] > 0
        assert (Path(row["checkpoint"]) / "model.safetensors").is_file()
        assert "val_exact" in row["validation"]
    assert rows[2]["objective"]["num_samples"] == 16


def test_every_model_is_measured_beside_accuracy(finished: tuple[Path, str]) -> None:
    output, said = finished
    base, *trained = json.loads((output / "debug" / "leaderboard.json").read_text())
    assert list(base["measures"]) == OF_BASE
    for row in trained:
        assert list(row["measures"]) == MEASURES
        for measure in row["measures"].values():
            assert 0 <= measure["low"] <= measure["value"] <= measure["high"]
        # The trial evaluated the same references, and more, at its last step.
        nll, accuracy = (row["measures"][name]["value"] for name in MEASURES[:2])
        assert nll == pytest.approx(row["validation"]["val_nll"], rel=0.2)
        assert accuracy == pytest.approx(row["validation"]["val_token_accuracy"], abs=0.1)
        assert row["measures"]["kl/target"]["value"] > 0
    assert "difference" not in trained[0]["measures"]["kl/target"], "sft is the reference arm"
    assert trained[1]["measures"]["kl/target"]["difference"]["against"] == "sft"
    assert "NLL per token" in said and "measured beside" not in said
    assert "<h2>Besides accuracy" in (output / "debug" / "report.html").read_text()


def test_the_report_shows_every_arm(finished: tuple[Path, str]) -> None:
    output, _ = finished
    page = (output / "debug" / "report.html").read_text()
    assert page.count("<svg") >= 3 and "http://" not in page.split("<svg")[0]
    for name in ("base", "sft", "otr-k16"):
        assert name in page


def test_mlflow_holds_the_sweep(finished: tuple[Path, str]) -> None:
    output, _ = finished
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("otr")
    assert experiment is not None
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"debug", "base", *TRIALS}
    parent = runs["debug"].info.run_id
    for name in TRIALS:
        run = runs[name]
        assert run.data.tags["mlflow.parentRunId"] == parent
        assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
        assert run.data.params["max_steps"] == "6"
        assert Path(run.data.tags["checkpoint"]).is_dir()
        steps = {m.step for m in client.get_metric_history(run.info.run_id, "curves/nll")}
        assert steps == {1, 2, 3, 4, 6}  # logged, or evaluated
        metrics = run.data.metrics
        assert any(key.startswith("system/") for key in metrics)
        for task in BENCHMARKS:
            low, value, high = (metrics[f"score/{task}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
        for measure in MEASURES:
            low, value, high = (metrics[f"{measure}{end}"] for end in ("_low", "", "_high"))
            assert low <= value <= high
    assert {*OF_BASE} <= runs["base"].data.metrics.keys()
    summary = runs["debug"].data.metrics
    assert all({f"score/{task}", f"base_score/{task}"} <= summary.keys() for task in BENCHMARKS)
    artifacts = {artifact.path for artifact in client.list_artifacts(parent)}
    files = {"leaderboard.json", "contamination.json", "report.html", "table.md", "run.json"}
    assert artifacts == files | {"figures"}
    assert "figures/scores.svg" in {a.path for a in client.list_artifacts(parent, "figures")}
    verdict = (output / "debug" / "table.md").read_text().partition("\n")[0]
    versions = client.search_model_versions("name = 'otr-debug'")
    assert [version.description for version in versions] == [verdict] * (" wins on " in verdict)


def test_a_repeated_command_reuses_all_results(finished: tuple[Path, str]) -> None:
    output, _ = finished
    before = json.loads((output / "debug" / "leaderboard.json").read_text())
    stored = [*output.rglob("model.safetensors"), *output.rglob("measures/*.json")]
    trained = {p: p.stat().st_mtime_ns for p in stored}
    assert len(trained) > len(TRIALS) + 1
    done = sweep(["-m", "pipelines.full_sweep"], output, "--name", "debug")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("continues")
    assert json.loads((output / "debug" / "leaderboard.json").read_text()) == before
    assert {p: p.stat().st_mtime_ns for p in stored} == trained
    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("otr")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_repeated_command_fills_an_empty_mlflow_store(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = finished
    trained = {p: p.stat().st_mtime_ns for p in output.rglob("model.safetensors")}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'empty.db'}")
    done = sweep(["-m", "pipelines.full_sweep"], output, "--name", "debug")
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in output.rglob("model.safetensors")} == trained
    filled = stored_runs(f"sqlite:///{tmp_path / 'empty.db'}")
    first = stored_runs(f"sqlite:///{output / 'mlflow.db'}")
    assert filled.keys() == first.keys()
    for name, stored in filled.items():
        assert replace(stored, metrics={}) == replace(first[name], metrics={})
        assert stored.metrics.keys() == first[name].metrics.keys()
        scores = [key for key in stored.metrics if key.startswith("score/")]
        assert [stored.metrics[k] for k in scores] == [first[name].metrics[k] for k in scores]
    for name in TRIALS:  # the driver was killed; speeds of repeated steps differ
        assert [step for step, _ in filled[name].metrics["curves/nll"]] == [1, 2, 3, 4, 6]
        assert filled[name].metrics["curves/nll"] == first[name].metrics["curves/nll"]


def test_a_trial_that_fails(tmp_path: Path) -> None:
    line = ["--arms", "sft", "--train.optim.lr", "1e30", "--name", "failing"]
    done = sweep(["-m", "pipelines.full_sweep"], tmp_path, *line)
    assert done.returncode == 1
    assert "sft-seed0 failed:" in done.stderr and "Traceback" not in done.stderr
    base, sft = json.loads((tmp_path / "failing" / "leaderboard.json").read_text())
    assert list(base["scores"]) == BENCHMARKS
    assert sft["status"] == "failed" and "lower optim.lr" in sft["error"]
