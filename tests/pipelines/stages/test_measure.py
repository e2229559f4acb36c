"""Measuring models beside their accuracy: what is measured, stored and reused; no Ray."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from evals.benchmark import TaskScore
from evals.records import write_answers
from otr import ModelConfig, load_model
from otr.config import DataConfig, LoraConfig, TrainConfig
from otr.models.lora import adapter_state, add_adapters, write_adapter
from pipelines.stages import measure
from pipelines.stages.measure import (
    CUT_SHARE,
    KL_GENERAL,
    KL_TARGET,
    MEAN_TOKENS,
    NLL,
    TOKEN_ACCURACY,
)
from tests.assets.tiny import make_tiny_model

TASKS = ("goal", "target-harder", "code", "history")


def answer(item: int, text: str, finish: str = "stop", sample: int = 0) -> dict[str, Any]:
    return {
        "id": f"i{item}",
        "sample": sample,
        "rendered": f"<|im_start|>user\n{item}?<|im_end|>\n<|im_start|>assistant\n",
        "text": text,
        "finish_reason": finish,
        "num_tokens": len(text) + (finish == "stop"),
        "correct": False,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model, a trained one and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: make_tiny_model(folder / name, seed=i) for i, name in enumerate(("base", "full"))}
    adapted = add_adapters(load_model(ModelConfig(str(made["base"]))), LoraConfig(rank=2))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(weight, 0.05)
    write_adapter(folder / "lora", adapted, adapter_state(adapted))
    return made | {"lora": folder / "lora"}


@pytest.fixture
def run(tmp_path: Path, models: dict[str, Path]) -> Any:
    """A run whose models have answered four benchmarks."""
    references = [{"prompt": f"{i} + 1?", "completion": f"It is {i + 1}."} for i in range(5)]
    data = tmp_path / "validation.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in references))
    for name in models:
        (tmp_path / "scores" / name).mkdir(parents=True)
        for task in TASKS:
            rows = [answer(0, "Yes."), answer(0, "abcdef", "length", 1), answer(1, name)]
            rows += [answer(2, "", "timeout")]
            write_answers(tmp_path / "scores" / name / f"{task}.parquet", rows)
    train = TrainConfig(
        ModelConfig(str(models["base"])),
        DataConfig(("none",), validation=(str(data),), sequence_length=64),
    )
    return SimpleNamespace(
        directory=tmp_path,
        config=SimpleNamespace(train=train),
        benchmarks=[SimpleNamespace(name=name, style="chat") for name in TASKS],
        model_dir=models["base"],
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The models that each task measured, in this process instead of Ray's."""
    calls: list[list[str]] = []

    def here(run: Any, base: str, models: dict[str, Path], examples: Any) -> Iterator[Any]:
        calls.append([*models])
        paths = {name: str(path) for name, path in models.items()}
        return measure.measure_in_turn(paths, base, run.config.train.model, examples)

    monkeypatch.setattr(measure, "_measured_by_ray", here)
    return calls


def scores(models: dict[str, Path], digest: str = "w") -> dict[str, list[TaskScore]]:
    return {
        name: [TaskScore(TASKS[0], "accuracy", 0.5, 0, 1, 3, {"weights": digest + name})]
        for name in models
    }


def test_what_is_measured_of_which_model(run, models, measured) -> None:
    outcome = measure.measure_models(run, models, scores(models))
    assert not outcome.errors and measured == [["base", "full", "lora"]]
    lengths, references = {MEAN_TOKENS, CUT_SHARE}, {NLL, TOKEN_ACCURACY}
    assert outcome.found["base"].keys() == lengths | references, "a KL to itself says nothing"
    for name in ("full", "lora"):
        found = outcome.found[name]
        assert found.keys() == lengths | references | {KL_TARGET, KL_GENERAL}
        assert found[KL_TARGET].ids == ("goal/i0", "goal/i1")
        assert found[KL_TARGET].counts == (5, 5), "4 bytes of an answer, and its end"
        assert found[KL_GENERAL].ids == ("code/i0", "code/i1", "history/i0", "history/i1")
        assert min(found[KL_TARGET].sums + found[KL_GENERAL].sums) > 0
        assert found[NLL].counts == (len("It is 1.") + 1,) * 5
        assert found[NLL].sums != outcome.found["base"][NLL].sums
    assert outcome.found["full"][MEAN_TOKENS].sums == (5.5, 5, 0), "means over samples"
    assert outcome.found["full"][CUT_SHARE].sums == (0.5, 0, 0)
    first = outcome.found["base"][NLL]
    assert first.values.mean() == pytest.approx(sum(first.sums) / sum(first.counts))


def test_an_answer_that_was_cut_has_no_end(run, tmp_path: Path) -> None:
    path = tmp_path / "scores" / "base" / "goal.parquet"
    write_answers(path, [answer(0, "abc", "length"), answer(1, "x" * 999), answer(2, "", "stop")])
    examples = measure.make_examples(run, "base").answers[KL_TARGET]
    assert [sum(mask) for _, mask in examples.values()] == [3, measure.MAX_ANSWER_TOKENS, 1]


def test_values_of_the_same_weights_and_examples_are_reused(run, models, measured) -> None:
    before = measure.measure_models(run, models, scores(models))
    assert measure.measure_models(run, models, scores(models)) == before
    assert len(measured) == 1, "nothing is measured again"
    changed = scores(models)
    changed["full"][0].settings["weights"] = "other"
    assert measure.measure_models(run, models, changed).found.keys() == models.keys()
    assert measured[1:] == [["full"]]
    measure.measure_models(run, models, scores(models, "new base and "))
    assert measured[2:] == [["base", "full", "lora"]]
    Path(run.config.train.data.validation[0]).write_text('{"prompt": "a", "completion": "b"}\n')
    measure.measure_models(run, models, scores(models, "new base and "))
    assert measured[3:] == [["base", "full", "lora"]]


def test_a_model_that_fails_costs_only_its_own_values(run, models, measured, capsys, tmp_path):
    broken = {**models, "full": tmp_path / "nowhere"}
    outcome = measure.measure_models(run, broken, scores(models))
    assert outcome.errors.keys() == {"full"} and "nowhere" in outcome.errors["full"]
    assert KL_TARGET in outcome.found["lora"] and KL_TARGET not in outcome.found["full"]
    assert MEAN_TOKENS in outcome.found["full"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "full could not be measured" in said[0]
    assert measure.measure_models(run, models, scores(models)).errors == {}
    assert measured[1:] == [["full"]]


def test_a_task_that_fails_costs_no_scores(run, models, monkeypatch) -> None:
    def lost(*_: Any) -> None:
        raise RuntimeError("the worker died")

    monkeypatch.setattr(measure, "_measured_by_ray", lost)
    outcome = measure.measure_models(run, models, scores(models))
    assert [*outcome.errors.values()] == ["RuntimeError: the worker died"]
    assert outcome.found["full"].keys() == {MEAN_TOKENS, CUT_SHARE}


def test_without_the_base_model_nothing_is_compared(run, models, measured, tmp_path: Path) -> None:
    run.config.train = replace(run.config.train, model=ModelConfig(str(tmp_path / "nowhere")))
    examples = measure.Examples({}, {KL_TARGET: {"a": ([1, 2], [False, True])}})
    found = measure.measure_in_turn({"full": "x"}, "base", run.config.train.model, examples)
    [(name, reason)] = found
    assert name == "base" and isinstance(reason, str) and "nowhere" in reason


def test_without_validation_data_the_references_are_left_out(run, models, measured) -> None:
    train = run.config.train
    run.config.train = replace(train, data=replace(train.data, validation=()))
    run.benchmarks = run.benchmarks[:1]
    outcome = measure.measure_models(run, models, scores(models))
    assert outcome.found["full"].keys() == {MEAN_TOKENS, CUT_SHARE, KL_TARGET}
    assert outcome.found["base"].keys() == {MEAN_TOKENS, CUT_SHARE}
