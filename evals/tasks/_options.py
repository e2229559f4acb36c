"""Names of benchmarks with options: ADDRESS[@N][:KEY=VALUE,...], as in `gsm8k@16:temperature=0.7`.

The options are what follows the last colon, if that has the form KEY=VALUE,... without "/", and the
whole is not an existing file: "file:a:b=1.jsonl" is the file "a:b=1.jsonl" if there is one.

    max_tokens   maximum number of tokens of an answer
    temperature  0 takes the most likely token at each step
    top_p        probability mass of the tokens to sample from
    seed         of the samples
    thinking     true or false: whether the chat template asks the model to think (enable_thinking)
    items        FIRST-LAST: only these items, counted from 1 in published order, as in 1-200
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark
from evals.hints import nearest_name

_TRUTH = {"true": True, "false": False}
_TYPES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "max_tokens": ("an integer", int),
    "temperature": ("a number", float),
    "top_p": ("a number", float),
    "seed": ("an integer", int),
    "thinking": ("true or false", lambda text: _TRUTH[text.lower()]),
    "items": ("FIRST-LAST in this order, as in 1-200", lambda text: _span(text)),
}
_OPTIONS = re.compile(r"\w+=[^/=,]*(,\w+=[^/=,]*)*")


@dataclass(frozen=True)
class Name:
    """A benchmark's name in its parts.

    Attributes:
        address: the name without the other parts.
        num_samples: the N of "@N"; 0 if there is none.
        options: value of each option, in the order of this module's table.
    """

    address: str
    num_samples: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """The samples and options as they follow the address; one spelling for equal options."""
        samples = f"@{self.num_samples}" if self.num_samples else ""
        words = ",".join(f"{key}={_text(value)}" for key, value in self.options.items())
        return samples + (f":{words}" if words else "")


def parse(name: str) -> Name:
    """Take a name apart.

    Raises:
        ValueError: an option is unknown, is given twice or has no such value, or N is 0.
    """
    rest, colon, words = name.rpartition(":")
    if not colon or not _OPTIONS.fullmatch(words) or Path(name.removeprefix("file:")).is_file():
        rest, words = name, ""
    options = _parse_options(name, words) if words else {}
    address, _, samples = rest.rpartition("@") if re.search(r"@\d+$", rest) else (rest, "", "")
    if samples and int(samples) < 1:
        raise ValueError(f'"{name}" asks for {samples} answers per item; give at least "@1"')
    return Name(address, int(samples or 0), options)


def short_name(name: str) -> str:
    """Return a benchmark's name without its options, but with its number of samples."""
    parts = parse(name)
    return parts.address + dataclasses.replace(parts, options={}).suffix


def apply(benchmark: Benchmark, name: Name) -> Benchmark:
    """Return the benchmark with another decoding or fewer items, and the options in its name.

    Raises:
        ValueError: it does not have these items, it can't think, or an option has no usable value.
    """
    changes = dict(name.options)
    thinking = changes.pop("thinking", None)
    benchmark = _with_items(benchmark, name, changes.pop("items", ""))
    if name.num_samples:
        sampled = {"num_samples": name.num_samples, "temperature": 1.0, "top_p": 1.0}
        changes = sampled | changes
    if thinking is not None and benchmark.style == "completion":
        raise ValueError(
            f'"{benchmark.name}{name.suffix}": "thinking" is an option of chat templates, and '
            "prompts for base models have none"
        )
    try:
        decoding = dataclasses.replace(benchmark.decoding, **changes)
    except ValueError as error:
        raise ValueError(f'"{benchmark.name}{name.suffix}": {error}') from None
    return dataclasses.replace(
        benchmark,
        name=benchmark.name + name.suffix,
        metric=f"avg@{name.num_samples}" if name.num_samples else benchmark.metric,
        decoding=decoding,
        thinking=thinking,
        fixed_limit="max_tokens" in changes,
    )


def _with_items(benchmark: Benchmark, name: Name, span: str) -> Benchmark:
    """Return the benchmark with the items of a span such as 1-200; an empty span: all."""
    if not span:
        return benchmark
    first, last = map(int, span.split("-"))
    count = len(benchmark.items)
    if last > count:
        raise ValueError(
            f'"{benchmark.name}{name.suffix}": the benchmark has {count:,} items: give '
            f"items=FIRST-LAST up to {count}"
        )
    notes = (f"items {first} to {last} of {count:,}", *benchmark.notes)
    return dataclasses.replace(benchmark, items=benchmark.items[first - 1 : last], notes=notes)


def _parse_options(name: str, words: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, _, text in (word.partition("=") for word in words.split(",")):
        if key == "num_samples":
            raise ValueError(f'"{name}": give the number of samples as "@{text}", not as an option')
        if key not in _TYPES:
            near, known = nearest_name(key, _TYPES), ", ".join(_TYPES)
            raise ValueError(
                f'"{name}" has the unknown option "{key}"; did you mean "{near}"? Known: {known}'
            )
        if key in found:
            raise ValueError(f'"{name}" has the option "{key}" twice')
        kind, convert = _TYPES[key]
        try:
            found[key] = convert(text)
        except (ValueError, KeyError):
            raise ValueError(f'"{name}": {key} is "{text}"; expected {kind}') from None
    return {key: found[key] for key in _TYPES if key in found}


def _span(text: str) -> str:
    """Return a span of items as it was given, if it is one."""
    match = re.fullmatch(r"([1-9]\d*)-([1-9]\d*)", text)
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(text)
    return text


def _text(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
