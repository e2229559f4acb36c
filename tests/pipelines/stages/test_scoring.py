"""One engine for the models of a run: started once, with the adapters that belong to its model."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evals.serving import deployment, engine
from pipelines.config.presets import debug
from pipelines.config.resolve import resolved
from pipelines.stages import scoring


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How the engine was started, and below "asked" what was asked of it."""
    calls: list[dict[str, Any]] = []

    def start(model_dir: Path, *, settings, adapter_dirs):
        calls.append({"model": model_dir, "beside": list(adapter_dirs), "asked": [], "stopped": 0})
        return SimpleNamespace(adapter=lambda path: ("beside", path))

    def end() -> None:
        calls[-1]["stopped"] += 1

    def score(serving, settings, model_dir, benchmarks, **more):
        served = serving()
        calls[-1]["asked"].append((model_dir.name, served))
        return []

    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=start))
    monkeypatch.setattr(scoring, "score", score)
    monkeypatch.setattr(deployment, "shut_down", end)
    return calls


@pytest.fixture
def scorer(tmp_path: Path) -> scoring.Scorer:
    config = resolved(debug(), tmp_path / "world")
    return scoring.Scorer(replace(config, output=str(tmp_path)), tmp_path / "run")


def models(tmp_path: Path, base: str) -> dict[str, str]:
    """A model and two adapters of the model named `base`."""
    found = {"base": tmp_path / "model", "a": tmp_path / "a", "b": tmp_path / "b"}
    for path in found.values():
        path.mkdir()
    told: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": 4,
        "bias": "none",
    }
    told["target_modules"] = ["q_proj"]
    for name in ("a", "b"):
        (found[name] / "adapter_config.json").write_text(json.dumps(told))
    return {name: str(path) for name, path in found.items()}


def test_adapters_of_the_first_model_are_served_beside_it(tmp_path, started, scorer) -> None:
    made = models(tmp_path, str(tmp_path / "model"))
    with scorer:
        scorer.plan(made)
        for name, path in made.items():
            scorer.score(name, path)
    [call] = started
    assert call["model"] == tmp_path / "model"
    assert call["beside"] == [tmp_path / "a", tmp_path / "b"]
    assert [name for name, _ in call["asked"]] == ["model", "a", "b"]
    assert call["asked"][1][1] == ("beside", tmp_path / "a")
    assert call["stopped"] == 1
    with pytest.raises(AssertionError, match="has ended"):
        scorer.score("base", made["base"])


def test_adapters_of_another_model_are_merged(tmp_path, started, scorer, monkeypatch) -> None:
    (tmp_path / "other").mkdir()
    made = models(tmp_path, str(tmp_path / "other"))
    monkeypatch.setattr(
        scoring, "merge", lambda path, out, trust_remote_code: out.mkdir(parents=True)
    )
    with scorer:
        scorer.plan(made)
        for name, path in made.items():
            scorer.score(name, path)
    [call] = started
    asked = [name.partition("-")[0] for name, _ in call["asked"]]
    assert call["beside"] == [] and asked == ["model", "a", "b"]
    assert len([*(tmp_path / "run" / "merged").iterdir()]) == 2


def test_a_serve_that_is_not_ours_is_left_alone(tmp_path, started, scorer, monkeypatch) -> None:
    def refuse(*asked: Any, **more: Any) -> None:
        raise ValueError("Ray Serve already runs")

    made = models(tmp_path, "")
    started.append({"stopped": 0})
    monkeypatch.setattr(engine, "Engine", SimpleNamespace(start=refuse))
    with pytest.raises(ValueError, match="already runs"), scorer:
        scorer.score("base", made["base"])
    assert started[-1]["stopped"] == 0
