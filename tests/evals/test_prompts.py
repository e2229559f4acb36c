"""The engine's context length, chosen from prompts and answers of the benchmarks."""

from dataclasses import replace
from pathlib import Path

import pytest

from evals.benchmark import Benchmark, Decoding, Item
from evals.prompts import fit_context, load_tokenizer, make_prompts
from evals.settings import EngineSettings
from tests.assets.tiny import make_tiny_model


def benchmark(name: str, prompts: list[str], max_tokens: int) -> Benchmark:
    items = tuple(Item(prompt, prompt, "") for prompt in prompts)
    decoding = Decoding(max_tokens=max_tokens)
    return Benchmark(name, "other", items, lambda item, text: True, decoding, "accuracy", "made up")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def longest_prompt(model: Path, of: Benchmark) -> int:
    tokenizer = load_tokenizer(model)
    return max(map(len, make_prompts(tokenizer, model, of, EngineSettings()).token_ids))


def test_the_context_holds_the_longest_prompt_and_the_longest_answer(model: Path) -> None:
    short, long = benchmark("short", ["a"], 300), benchmark("long", ["b" * 50, "c"], 200)
    expected = max(longest_prompt(model, short) + 300, longest_prompt(model, long) + 200)
    settings = fit_context(model, [short, long], EngineSettings(), 1024)
    assert settings == EngineSettings(max_model_len=expected)
    assert fit_context(model, [short, long], EngineSettings(), None) == settings


def test_a_model_that_is_too_short_for_a_benchmark(model: Path) -> None:
    fits, long = benchmark("fits", ["a"], 300), benchmark("long", ["a"], 4096)
    message = r"'long': its longest prompt has \d+ tokens .* up to 4096, .* 1024 positions: leave"
    with pytest.raises(ValueError, match=message):
        fit_context(model, [fits, long], EngineSettings(), 1024)
    given = EngineSettings(max_model_len=1000)
    assert fit_context(model, [fits, long], given, 1024) == given, "a person may cut answers off"
    with pytest.raises(ValueError, match=r"prompt of 'bb.*set engine.max_model_len to"):
        fit_context(
            model, [benchmark("b", ["b" * 1000], 9)], replace(given, max_model_len=999), 1024
        )
