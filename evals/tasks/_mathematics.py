r"""Prompt, answer rule and decoding of the mathematics benchmarks, zero-shot.

The prompt is "qwen-boxed" of QwenLM/Qwen2.5-Math (evaluation/, a45202b), and the last `\boxed{}` is
the answer. The limit of 4,096 new tokens is that of yongliang-wu/DFT (e153181), whose evaluation of
16 samples at temperature 1 is NAME@16 here.
"""

from collections.abc import Iterable
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import compare, final_answer, math_equal

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def item(id: str, problem: str, answer: str, *, completion: str = "", **meta: Any) -> Item:
    """Return one problem; reports group by `meta`."""
    return Item(id, f"{problem}\n{INSTRUCTION}", answer, meta=meta, completion=completion)


def benchmark(name: str, items: Iterable[Item], source: str) -> Benchmark:
    """Return a benchmark of mathematics problems."""
    return Benchmark(
        name=name,
        domain="mathematics",
        items=tuple(items),
        grade=grade,
        decoding=Decoding(max_tokens=4096),
        metric="accuracy",
        source=source,
        extract=extract,
        as_text=as_text,
    )


def grade(item: Item, text: str) -> bool:
    """Compare the final answer with the reference by value."""
    return math_equal(text, item.answer)


def extract(item: Item, text: str) -> str:
    """Return the final answer in a canonical spelling."""
    return final_answer(text)


def as_text(item: Item, text: str) -> bool:
    """Return whether the final answer was compared as text, for want of a parse."""
    return compare(text, item.answer).as_text


def integer(answer: str | float, location: str) -> str:
    r"""Return a competition's integer answer without leading zeros, ".0" and `^\circ`."""
    text = str(answer).removesuffix("^\\circ").removesuffix(".0")
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f'{location}: field "answer" is {answer!r}, expected an integer')
    return str(int(text))
