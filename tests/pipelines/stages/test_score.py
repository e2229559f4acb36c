"""`Scorer`: one engine for all models of a run, with the adapters that belong to its model."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.serving import deployment, engine
from evals.settings import EngineSettings
from pipelines.stages import score as stage


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the engine was started, and under "scored" what it scored."""
    calls: list[dict[str, Any]] = []

    def start(model_dir: Path, *, settings, adapter_dirs):
        calls.append(
            {"model": model_dir, "adapters": list(adapter_dirs), "scored": [], "stopped": 0}
        )
        return SimpleNamespace(adapter=lambda path: ("adapter", path))

    def end() -> None:
        calls[-1]["stopped"] += 1

    def score(serving, settings, model_dir, benchmarks, **more):
        served = serving()
        calls[-1]["scored"].append((model_dir.name, served))
        return []

    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=start))
    monkeypatch.setattr(stage, "score", score)
    monkeypatch.setattr(deployment, "shut_down", end)
    return calls


@pytest.fixture
def scorer(tmp_path: Path) -> stage.Scorer:
    return stage.Scorer((), EngineSettings(), tmp_path / "run")


def models(tmp_path: Path, base: str) -> dict[str, Path]:
    """A model and two adapters of the model named `base`."""
    found = {"base": tmp_path / "model", "a": tmp_path / "a", "b": tmp_path / "b"}
    for path in found.values():
        path.mkdir()
    adapter: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": 4,
        "bias": "none",
    }
    adapter["target_modules"] = ["q_proj"]
    for name in ("a", "b"):
        (found[name] / "adapter_config.json").write_text(json.dumps(adapter))
    return found


def test_adapters_of_the_first_model_are_served_with_it(tmp_path, started, scorer) -> None:
    made = models(tmp_path, str(tmp_path / "model"))
    with scorer:
        scorer.serve_adapters(made)
        for name, path in made.items():
            scorer.score(name, path)
    [call] = started
    assert call["model"] == tmp_path / "model"
    assert call["adapters"] == [tmp_path / "a", tmp_path / "b"]
    assert [name for name, _ in call["scored"]] == ["model", "a", "b"]
    assert call["scored"][1][1] == ("adapter", tmp_path / "a")
    assert call["stopped"] == 1
    with pytest.raises(AssertionError, match="is closed"):
        scorer.score("base", made["base"])


def test_adapters_of_another_model_are_merged(tmp_path, started, scorer, monkeypatch) -> None:
    (tmp_path / "other").mkdir()
    made = models(tmp_path, str(tmp_path / "other"))
    monkeypatch.setattr(stage, "merge", lambda path, out, dtype: out.mkdir(parents=True))
    with scorer:
        scorer.serve_adapters(made)
        for name, path in made.items():
            scorer.score(name, path)
    [call] = started
    scored = [name.partition("-")[0] for name, _ in call["scored"]]
    assert call["adapters"] == [] and scored == ["model", "a", "b"]
    assert len([*(tmp_path / "run" / "merged").iterdir()]) == 2


def test_adapters_that_vllm_cannot_serve_are_merged(tmp_path, started, scorer, monkeypatch) -> None:
    made = models(tmp_path, str(tmp_path / "model"))
    path = made["b"] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    monkeypatch.setattr(stage, "merge", lambda path, out, dtype: out.mkdir(parents=True))
    with scorer:
        scorer.serve_adapters(made)
        for name, directory in made.items():
            scorer.score(name, directory)
    [call] = started
    assert call["adapters"] == []
    assert [name.partition("-")[0] for name, _ in call["scored"]] == ["model", "a", "b"]


def test_a_serve_that_ran_before_is_not_stopped(tmp_path, started, scorer, monkeypatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise ValueError("Ray Serve already runs")

    made = models(tmp_path, "")
    started.append({"stopped": 0})
    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=refuse))
    with pytest.raises(ValueError, match="already runs"), scorer:
        scorer.score("base", made["base"])
    assert started[-1]["stopped"] == 0
