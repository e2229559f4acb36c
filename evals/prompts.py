"""From the items of a benchmark to the tokens that a model is asked with.

In: a model's tokenizer, a benchmark, the engine's settings. Out: `Prompts`, or a ValueError that
says what does not fit, before any engine is started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import tasks
from evals.benchmark import Benchmark

if TYPE_CHECKING:
    from evals.settings import EngineSettings


@dataclass(frozen=True)
class Prompts:
    """What is asked of a model, in the order of the items."""

    asked: list[str]
    """The items' own texts."""
    rendered: list[str]
    """The same as the model sees them."""
    token_ids: list[list[int]]
    stop_token_ids: list[int]


def check(model_dir: str | Path, benchmarks: Sequence[Benchmark], settings: EngineSettings) -> None:
    """See whether a model can be asked all of the benchmarks.

    Raises:
        ValueError: it can't; two benchmarks of one name; or one that is empty or has an id twice.
    """
    check_names(benchmarks)
    path = Path(model_dir).absolute()
    tokenizer = load_tokenizer(path)
    for benchmark in benchmarks:
        make(tokenizer, path, benchmark, settings)


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """ValueError where two have the same name, under which both would be stored."""
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {sorted(names)}; rename one")


def make(
    tokenizer: Any, model_dir: Path, benchmark: Benchmark, settings: EngineSettings
) -> Prompts:
    """The prompts of a benchmark, each a user turn or a text to continue, as its style says.

    Raises:
        ValueError: no items, an id twice, no chat template, or a prompt that is too long.
    """
    _check_items(benchmark)
    if benchmark.style == "completion":
        rendered = asked = [item.completion for item in benchmark.items]
        begin = _begin(tokenizer)
    else:
        _check_template(tokenizer, model_dir, benchmark)
        asked = [item.prompt for item in benchmark.items]
        rendered = [_render(tokenizer, text) for text in asked]
        begin = []
    ids = [begin + tokenizer.encode(text, add_special_tokens=False) for text in rendered]
    _check_lengths(benchmark, ids, settings.max_model_len)
    return Prompts(asked, rendered, ids, _stop_token_ids(tokenizer, model_dir))


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer in a model's directory; ValueError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(os.fspath(model_dir), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_dir} holds no tokenizer that can be loaded: {error}") from error


def _check_items(benchmark: Benchmark) -> None:
    if not benchmark.items:
        raise ValueError(f"benchmark {benchmark.name!r} has no items; give at least one")
    ids = [item.id for item in benchmark.items]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise ValueError(f"benchmark {benchmark.name!r} has the id {twice!r} more than once")


def _check_template(tokenizer: Any, model_dir: Path, benchmark: Benchmark) -> None:
    if tokenizer.chat_template:
        return
    name, at, samples = benchmark.name.partition("@")
    known = tasks.base_names()
    offer = f"with {f'{name}-base{at}{samples}'!r} in place of {benchmark.name!r}"
    if name not in known:
        offer = f"with one of {', '.join(f'{each}-base' for each in known)}"
    raise ValueError(
        f"the tokenizer in {model_dir} has no chat template: ask it as a base model, {offer}, or "
        "add the chat_template.jinja that the model was trained with"
    )


def _check_lengths(benchmark: Benchmark, ids: Sequence[Sequence[int]], most: int) -> None:
    """An answer needs a token of its own at least."""
    lengths = [len(each) for each in ids]
    too_long = sum(length >= most for length in lengths)
    if too_long:
        longest = max(lengths)
        item = benchmark.items[lengths.index(longest)].id
        raise ValueError(
            f"benchmark {benchmark.name!r}: the prompt of {item!r} has {longest} tokens, and "
            f"engine.max_model_len is {most} for prompt and answer together ({too_long} of "
            f"{len(ids)} prompts are too long): set engine.max_model_len to "
            f"{longest + benchmark.decoding.max_tokens}, which leaves room for "
            f"{benchmark.decoding.max_tokens} new tokens, or leave the benchmark out"
        )


def _render(tokenizer: Any, prompt: str) -> str:
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _begin(tokenizer: Any) -> list[int]:
    """The token that the tokenizer begins a text with, if any."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and begin in tokenizer.encode("")[:1] else []


def _stop_token_ids(tokenizer: Any, model_dir: Path) -> list[int]:
    """Tokens that end an answer.

    The tokenizer's and the generation config's end-of-sequence tokens, and the token with which
    the chat template closes a turn: base models with a chat template often end sequences with
    another token than turns.
    """
    ids = {tokenizer.eos_token_id}
    generation_config = model_dir / "generation_config.json"
    if generation_config.exists():
        listed = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update(listed if isinstance(listed, list) else [listed])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
        closing = tokenizer.encode(tail, add_special_tokens=False)[:1]
        ids.update(token for token in closing if token in tokenizer.added_tokens_decoder)
    return sorted(ids - {None})
