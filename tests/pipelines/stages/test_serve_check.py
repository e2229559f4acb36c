"""What `otr train` says where vLLM does not serve a checkpoint, or can't be asked."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.serving import engine
from evals.serving.probe import NotServedError
from pipelines.config.presets import SweepConfig, debug
from pipelines.config.resolve import resolved
from pipelines.stages import serve_check


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return resolved(debug(), tmp_path / "world")


def test_what_is_served_otherwise_is_an_error(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*asked: Any, **more: Any) -> None:
        raise NotServedError("log-probabilities differ by up to 3")

    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=start))
    (tmp_path / "step-2").mkdir()
    with pytest.raises(ValueError, match=r"step-2 is saved, but not to be used: .* differ by"):
        serve_check.prove(config, str(tmp_path / "step-2"), tmp_path)


def test_an_engine_that_does_not_start_is_no_fault_of_the_checkpoint(
    tmp_path: Path, config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """This one is: it is empty. But the engine was not asked."""
    (empty := tmp_path / "step-2").mkdir()
    serve_check.prove(config, str(empty), tmp_path)
    said = capsys.readouterr().err
    assert "~ prove" in said and "not proven in vLLM: it could not serve it here: " in said


def test_where_it_is_not_tried(
    tmp_path: Path,
    config: SweepConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trusting = replace(config.train.model, trust_remote_code=True)
    serve_check.prove(replace(config, train=replace(config.train, model=trusting)), "", tmp_path)
    monkeypatch.setattr(
        serve_check.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20)
    )
    serve_check.prove(config, "", tmp_path)
    said = capsys.readouterr().err
    assert "not proven in vLLM: it never runs code that comes with a model" in said
    assert "GiB of memory, 0 are free" in said
