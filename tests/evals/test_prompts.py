"""The engine's context length, chosen from prompts and answers of the benchmarks."""

from dataclasses import replace
from pathlib import Path

import pytest

from evals.benchmark import Benchmark, Decoding, Item
from evals.prompts import fit_context, fit_thinking, load_tokenizer, make_prompts
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
    with pytest.raises(ValueError, match=r"prompt of 'bb.*give --engine.max-model-len"):
        fit_context(
            model, [benchmark("b", ["b" * 1000], 9)], replace(given, max_model_len=999), 1024
        )


QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
OFF_BY_DEFAULT = QWEN3.replace("enable_thinking is defined and ", "").replace(
    "enable_thinking is false", "not enable_thinking"
)
ALWAYS = QWEN3.partition("{% if enable")[0] + "<think>\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "thinking", "limit", "note"),
    [
        (QWEN3, None, 8192, "thinking, up to 8,192 tokens per answer"),
        (QWEN3, True, 8192, "thinking, up to 8,192 tokens per answer"),
        (QWEN3, False, 300, "without thinking"),
        (OFF_BY_DEFAULT, None, 300, "without thinking"),
        (OFF_BY_DEFAULT, True, 8192, "thinking, up to 8,192 tokens per answer"),
        (ALWAYS, None, 8192, "thinking, up to 8,192 tokens per answer"),
        (None, None, 300, ""),
    ],
)
def test_a_model_that_thinks_gets_room_for_it(
    tmp_path: Path, template: str | None, thinking: bool | None, limit: int, note: str
) -> None:
    path = make_tiny_model(tmp_path / "model")
    if template:
        (path / "chat_template.jinja").write_text(template)
    asked = replace(benchmark("b", ["a"], 300), thinking=thinking)
    (fitted,) = fit_thinking(path, [asked], None)
    assert fitted.decoding.max_tokens == limit and fitted.notes == ((note,) if note else ())
    (prompt,) = make_prompts(load_tokenizer(path), path, fitted, EngineSettings()).rendered
    assert ("</think>" in prompt) == (note == "without thinking")


def test_the_room_for_thinking_is_limited(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "model")
    (path / "chat_template.jinja").write_text(QWEN3)
    asked = benchmark("b", ["a" * 50], 300)
    (fitted,) = fit_thinking(path, [asked], 1024)
    assert 800 < fitted.decoding.max_tokens < 1024 - 50, "by the positions of the model"
    assert fit_context(path, [fitted], EngineSettings(), 1024).max_model_len <= 1024
    (given,) = fit_thinking(path, [replace(asked, fixed_limit=True)], None)
    assert given.decoding.max_tokens == 300, "by a person"


@pytest.mark.parametrize(("template", "thinking"), [(ALWAYS, False), (None, True), (None, False)])
def test_thinking_that_can_not_be_switched(
    tmp_path: Path, template: str | None, thinking: bool
) -> None:
    path = make_tiny_model(tmp_path / "model")
    if template:
        (path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"'b': the chat template .* can't switch thinking"):
        fit_thinking(path, [replace(benchmark("b", ["a"], 300), thinking=thinking)], None)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", "{% if messages", "chat template in .* can't be rendered .unexpec"),
        ("chat_template.jinja", "{{ 'a' + 1 }}", "chat template in .* can't be rendered"),
        ("chat_template.jinja", "{{ raise_exception('no system') }}", "rendered .no system"),
        ("generation_config.json", '{"eos_', "generation_config.json is no JSON object"),
        ("generation_config.json", "[1]", "generation_config.json is no JSON object"),
    ],
)
def test_damaged_files_of_a_model_are_named(
    tmp_path: Path, file: str, content: str, message: str
) -> None:
    path = make_tiny_model(tmp_path / "model")
    (path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        longest_prompt(path, benchmark("b", ["a"], 9))
