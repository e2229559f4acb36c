"""Prompts of a benchmark as token ids, and the checks that precede the start of an engine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from evals import tasks
from evals.benchmark import Benchmark, check_items

if TYPE_CHECKING:
    from evals.settings import EngineSettings


THINKING_TOKENS = 8192
"""Least limit of an answer, in tokens, if the model thinks first and the limit was not chosen."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of a benchmark for one model, in the order of the items.

    Attributes:
        texts: the items' own texts.
        rendered: the same texts after the chat template.
        token_ids: the rendered texts as tokens.
        stop_token_ids: tokens that end an answer.
    """

    texts: list[str]
    rendered: list[str]
    token_ids: list[list[int]]
    stop_token_ids: list[int]


def fit_context(
    model_dir: str | Path,
    benchmarks: Sequence[Benchmark],
    settings: EngineSettings,
    positions: int | None,
) -> EngineSettings:
    """Check that prompts of all benchmarks can be made, and choose the context length.

    Args:
        model_dir: directory with the model's tokenizer.
        benchmarks: the benchmarks.
        settings: settings of the engine. If `max_model_len` is 0, it becomes the largest sum of a
            benchmark's longest prompt and longest answer.
        positions: the longest context of the model in tokens; None if there is no limit.

    Raises:
        ValueError: two benchmarks have the same name, one has no items or an id twice, the model
            has no tokenizer or chat template, a prompt is too long, or the model's context is too
            short for a benchmark's answers.
    """
    check_names(benchmarks)
    path = Path(model_dir).absolute()
    tokenizer = load_tokenizer(path)
    needed = [1]
    for benchmark in benchmarks:
        prompts = make_prompts(tokenizer, path, benchmark, settings)
        longest, new = max(map(len, prompts.token_ids)), benchmark.decoding.max_tokens
        if positions and not settings.max_model_len and longest + new > positions:
            raise ValueError(
                f"benchmark {benchmark.name!r}: its longest prompt has {longest} tokens and its "
                f"answers have up to {new}, but the model has {positions} positions: leave the "
                f"benchmark out, or give --engine.max-model-len {positions}, which cuts off (and "
                "counts) longer answers"
            )
        needed.append(longest + new)
    return dataclasses.replace(settings, max_model_len=settings.max_model_len or max(needed))


def fit_thinking(
    model_dir: str | Path, benchmarks: Sequence[Benchmark], positions: int | None
) -> list[Benchmark]:
    """Give models that think before they answer room for it, and note whether they think.

    Args:
        model_dir: directory with the model's tokenizer.
        benchmarks: the benchmarks. Those for base models stay as they are.
        positions: the longest context of the model in tokens; None if there is no limit.

    Returns:
        The benchmarks in the same order.

    Raises:
        ValueError: as `load_tokenizer`, or a benchmark sets `thinking` and the chat template has no
            such switch.
    """
    path = Path(model_dir).absolute()
    if all(benchmark.style == "completion" for benchmark in benchmarks):
        return [*benchmarks]
    tokenizer = load_tokenizer(path)
    return [_fit_thinking(tokenizer, path, benchmark, positions) for benchmark in benchmarks]


def _fit_thinking(
    tokenizer: Any, model_dir: Path, benchmark: Benchmark, positions: int | None
) -> Benchmark:
    if benchmark.style == "completion" or not tokenizer.chat_template:
        return benchmark
    thinks = _thinks(tokenizer, benchmark.thinking)
    if benchmark.thinking is not None and thinks is not benchmark.thinking:
        raise ValueError(
            f"benchmark {benchmark.name!r}: the chat template in {model_dir} can't switch thinking "
            f"{'on' if benchmark.thinking else 'off'} (enable_thinking): leave out the option"
        )
    if thinks is None:
        return benchmark
    decoding, note = benchmark.decoding, "without thinking"
    if thinks:
        limit = max(decoding.max_tokens, THINKING_TOKENS)
        if positions:
            longest = max(len(tokenizer.encode(item.prompt)) for item in benchmark.items)
            # The template's own tokens: as many as it adds to an empty turn.
            longest += len(tokenizer.encode(_render(tokenizer, "", benchmark.thinking)))
            limit = max(decoding.max_tokens, min(limit, positions - longest))
        if not benchmark.fixed_limit:
            decoding = dataclasses.replace(decoding, max_tokens=limit)
        note = f"thinking, up to {decoding.max_tokens:,} tokens per answer"
    return dataclasses.replace(benchmark, decoding=decoding, notes=(*benchmark.notes, note))


def _thinks(tokenizer: Any, wanted: bool | None) -> bool | None:
    """Return whether the chat template makes the model think; None if it says nothing about it.

    A template has a switch if its text differs with `enable_thinking` on and off. Otherwise the
    model thinks if the text ends inside of `<think>`.
    """
    text, on, off = (_render(tokenizer, "Q", each) for each in (wanted, True, False))
    if on != off:
        return text == on
    opened = text.rpartition("<think>")
    return "</think>" not in opened[2] if opened[1] else None


def check_names(benchmarks: Sequence[Benchmark]) -> None:
    """Check that names are unique: scores are stored under them.

    Raises:
        ValueError: two benchmarks have the same name.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {sorted(names)}; rename one")


def make_prompts(
    tokenizer: Any, model_dir: Path, benchmark: Benchmark, settings: EngineSettings
) -> Prompts:
    """Make the prompts of a benchmark: user turns or texts to continue, according to its style.

    Raises:
        ValueError: the benchmark has no items or an id twice, the tokenizer has no chat template,
            or a prompt is too long.
    """
    check_items(benchmark.items, benchmark.name)
    if benchmark.style == "completion":
        rendered = texts = [item.completion for item in benchmark.items]
    else:
        _check_template(tokenizer, model_dir, benchmark)
        texts = [item.prompt for item in benchmark.items]
        rendered = [_render(tokenizer, text, benchmark.thinking) for text in texts]
    ids = encode(tokenizer, rendered, benchmark.style)
    _check_lengths(benchmark, ids, settings.max_model_len)
    return Prompts(texts, rendered, ids, _stop_token_ids(tokenizer, model_dir))


def encode(tokenizer: Any, rendered: Sequence[str], style: str) -> list[list[int]]:
    """Return the token ids of rendered prompts of a style, as the engine gets them."""
    # The chat template writes the beginning-of-sequence token itself.
    prefix = _bos_prefix(tokenizer) if style == "completion" else []
    return [prefix + tokenizer.encode(text, add_special_tokens=False) for text in rendered]


def load_tokenizer(model_dir: Path) -> Any:
    """Load the tokenizer of a model directory.

    Raises:
        ValueError: the directory holds none that can be loaded.
    """
    from transformers import AutoTokenizer  # takes seconds

    try:
        return AutoTokenizer.from_pretrained(os.fspath(model_dir), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_dir} holds no tokenizer that can be loaded: {error}") from error


def _check_template(tokenizer: Any, model_dir: Path, benchmark: Benchmark) -> None:
    if tokenizer.chat_template:
        return
    name = re.split("[@:]", benchmark.name)[0]
    known = tasks.base_names()
    offer = f"with {name + '-base' + benchmark.name[len(name) :]!r} in place of {benchmark.name!r}"
    if name not in known:
        offer = f"with one of {', '.join(f'{each}-base' for each in known)}"
    raise ValueError(
        f"the tokenizer in {model_dir} has no chat template: score it as a base model, {offer}, or "
        "add the chat_template.jinja that the model was trained with"
    )


def _check_lengths(benchmark: Benchmark, ids: Sequence[Sequence[int]], max_model_len: int) -> None:
    """Check that every prompt leaves at least one token for the answer; 0 is no limit."""
    lengths = [len(each) for each in ids]
    too_long = sum(length >= max_model_len > 0 for length in lengths)
    if too_long:
        longest, new = max(lengths), benchmark.decoding.max_tokens
        item = benchmark.items[lengths.index(longest)].id
        raise ValueError(
            f"benchmark {benchmark.name!r}: the prompt of {item!r} has {longest} tokens, and "
            f"--engine.max-model-len is {max_model_len} for prompt and answer together ({too_long} "
            f"of {len(ids)} prompts are too long): give --engine.max-model-len {longest + new}, "
            f"which leaves room for {new} new tokens, or leave the benchmark out"
        )


def _render(tokenizer: Any, prompt: str, thinking: bool | None) -> str:
    switch = {} if thinking is None else {"enable_thinking": thinking}
    turns = [{"role": "user", "content": prompt}]
    return _apply_template(tokenizer, turns, add_generation_prompt=True, **switch)


def _apply_template(tokenizer: Any, turns: list[dict[str, str]], **options: bool) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except (jinja2.TemplateError, TypeError) as error:
        raise ValueError(
            f"the chat template in {tokenizer.name_or_path} can't be rendered ({error}): replace "
            "it by the one that the model was trained with"
        ) from error


def _bos_prefix(tokenizer: Any) -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer puts one before a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer.encode("")[:1] else []


def _stop_token_ids(tokenizer: Any, model_dir: Path) -> list[int]:
    """Return the tokens that end an answer, sorted.

    These are the end-of-sequence tokens of the tokenizer and of the generation config, and the
    token with which the chat template closes a turn: base models with a chat template often use
    different tokens for the end of a sequence and the end of a turn.
    """
    ids = {tokenizer.eos_token_id}
    generation_config = model_dir / "generation_config.json"
    if generation_config.exists():
        try:
            listed = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{generation_config} is no JSON object ({error}): mend it, or remove it"
            ) from error
        ids.update(listed if isinstance(listed, list) else [listed])
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
        tail = _apply_template(tokenizer, turns).rpartition("ANSWER")[2]
        closing = tokenizer.encode(tail, add_special_tokens=False)[:1]
        ids.update(token for token in closing if token in tokenizer.added_tokens_decoder)
    return sorted(ids - {None})
