"""The check at the end of `otr train`: failures of the checkpoint, and of the engine."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.serving import engine
from evals.serving.probe import NotServedError
from pipelines.config.prepared import PreparedRun, prepare
from pipelines.config.presets import debug
from pipelines.stages import serve_check


@pytest.fixture
def run(tmp_path: Path) -> PreparedRun:
    config = replace(debug(), output=str(tmp_path))
    return prepare(config, tmp_path / "world")


def test_a_checkpoint_that_vllm_serves_differently_is_an_error(
    tmp_path: Path, run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*arguments: Any, **options: Any) -> None:
        raise NotServedError("log-probabilities differ by up to 3")

    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=start))
    (checkpoint := tmp_path / "step-2").mkdir()
    with pytest.raises(ValueError, match=r"step-2 is saved but unusable: .* differ by"):
        serve_check.check_served(run, checkpoint)


def test_an_engine_that_does_not_start_is_no_fault_of_the_checkpoint(
    tmp_path: Path, run: PreparedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty := tmp_path / "step-2").mkdir()  # no engine starts from an empty directory
    serve_check.check_served(run, empty)
    said = capsys.readouterr().err
    assert "~ serve" in said and "not checked with vLLM: vLLM failed here: " in said


def test_it_is_skipped_for_remote_code_and_without_enough_memory(
    tmp_path: Path,
    run: PreparedRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = run.config
    trusting = replace(config.train.model, trust_remote_code=True)
    trusting_run = PreparedRun(replace(config, train=replace(config.train, model=trusting)))
    serve_check.check_served(trusting_run, tmp_path)
    memory = SimpleNamespace(available=2**20)
    monkeypatch.setattr(serve_check.psutil, "virtual_memory", lambda: memory)
    serve_check.check_served(run, tmp_path)
    said = capsys.readouterr().err
    assert "not checked with vLLM: vLLM never runs code that comes with a model" in said
    assert "GiB of memory, and 0.0 GiB are free" in said
