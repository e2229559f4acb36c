"""score(): prompts, verdicts, stored files, reuse. The engine is a fake that answers sums."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evals.benchmark import Benchmark, Decoding, Item, TaskScore
from evals.deployment import EngineSettings
from evals.engine import Completion
from evals.score import score
from tests.assets.tiny import TURN_END, make_tiny_model


class Calculator:
    """Answers "A + B" with the sum; with 100 where A is odd and the sample's number is odd."""

    def __init__(self, model_dir: Path) -> None:
        self.settings = EngineSettings()
        self.model_dir = model_dir
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.generated: list[dict] = []

    def swap(self, checkpoint_dir: Path) -> None:
        self.model_dir = checkpoint_dir

    def generate(self, prompts, decoding, *, stop_token_ids=()):
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        self.generated.append({"texts": texts, "stop": list(stop_token_ids)})
        answers = []
        for text in texts:
            a, b = (int(n) for n in text.split("\n")[1].removesuffix(TURN_END).split("+"))
            sums = [100 if a % 2 and n % 2 else a + b for n in range(decoding.num_samples)]
            answers.append([Completion(f"It is {s}", "stop", 4) for s in sums])
        answers[-1][-1] = Completion("", "timeout", 0)
        return answers


class Started(Exception):
    """The engine was asked for."""


def no_engine() -> Calculator:
    raise Started


def score_on(engine: Calculator, model_dir: Path, benchmarks, **more) -> list[TaskScore]:
    return score(lambda: engine, engine.settings, model_dir, benchmarks, **more)


def right(item: Item, text: str) -> bool:
    return text == f"It is {item.answer}"


@pytest.fixture
def model(tmp_path) -> Path:
    return make_tiny_model(tmp_path / "model")


@pytest.fixture
def sums() -> Benchmark:
    items = tuple(Item(str(n), f"{n} + 1", str(n + 1)) for n in range(4))
    decoding = Decoding(max_tokens=8, num_samples=2)
    return Benchmark("sums", "mathematics", items, right, decoding, "accuracy", "made up")


def test_value_prompts_and_files(model, sums, tmp_path):
    engine = Calculator(model)
    [result] = score_on(engine, model, [sums], results_dir=tmp_path / "results")
    # 8 answers; wrong: the second of items 1 and 3, of which the last also timed out
    assert result.value == 6 / 8
    assert result.low < result.value < result.high
    assert result.settings["num_timeouts"] == 1
    [call] = engine.generated
    assert call["texts"][1] == f"<|im_start|>user\n1 + 1{TURN_END}\n<|im_start|>assistant\n"
    assert call["stop"] == [engine.tokenizer.convert_tokens_to_ids(TURN_END)]
    lines = [json.loads(line) for line in (tmp_path / "results/sums.jsonl").open()]
    assert [[s["correct"] for s in line["samples"]] for line in lines] == [
        [True, True], [True, False], [True, True], [True, False],
    ]  # fmt: skip
    assert lines[1]["samples"][1]["text"] == "It is 100"
    assert not list((tmp_path / "results").glob("*.partial"))


def test_reused_only_for_same_weights_items_and_settings(model, sums, tmp_path):
    engine, results = Calculator(model), tmp_path / "results"
    first = score_on(engine, model, [sums], results_dir=results)
    assert score(no_engine, engine.settings, model, [sums], results_dir=results) == first

    other = make_tiny_model(tmp_path / "other", seed=1)
    warmer = dataclasses.replace(sums, decoding=dataclasses.replace(sums.decoding, temperature=1.0))
    fewer = dataclasses.replace(sums, items=sums.items[:3])
    shorter = dataclasses.replace(engine.settings, max_model_len=64)
    for directory, benchmark, settings in (
        (other, sums, engine.settings),
        (model, warmer, engine.settings),
        (model, fewer, engine.settings),
        (model, sums, shorter),
    ):
        with pytest.raises(Started):
            score(no_engine, settings, directory, [benchmark], results_dir=results)
    score_on(engine, other, [sums], results_dir=results)
    assert engine.model_dir == other
    assert len(engine.generated) == 2


def test_turn_end_stops_where_the_model_ends_sequences_with_another_token(model, sums):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(model)
    (model / "generation_config.json").unlink()
    engine = Calculator(model)
    score_on(engine, model, [sums])
    expected = tokenizer.convert_tokens_to_ids(["<|endoftext|>", TURN_END])
    assert engine.generated[0]["stop"] == sorted(expected)


def test_bad_input_is_named(model, sums, tmp_path):
    engine = Calculator(model)
    with pytest.raises(ValueError, match="same name"):
        score_on(engine, model, [sums, sums])
    with pytest.raises(ValueError, match="'sums' has no items"):
        score_on(engine, model, [dataclasses.replace(sums, items=())])
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        score_on(engine, model, [sums])
    with pytest.raises(ValueError, match="no tokenizer"):
        score_on(engine, tmp_path / "nowhere", [sums])
    assert engine.generated == []
