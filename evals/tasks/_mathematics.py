r"""What the mathematics benchmarks share: prompt, answer rule, decoding.

In: problems and reference answers. Out: a `Benchmark`. Zero-shot, with the prompt "qwen-boxed" of
QwenLM/Qwen2.5-Math (evaluation/, a45202b) and the limit of 4,096 tokens of yongliang-wu/DFT
(e153181), who draw 16 samples at temperature 1: NAME@16. The last `\boxed{}` is the answer.
"""

from collections.abc import Iterable
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading.answers import final_answer, math_equal

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def item(id: str, problem: str, answer: str, *, completion: str = "", **meta: Any) -> Item:
    """One problem; `meta` is what reports group by."""
    return Item(id, f"{problem}\n{INSTRUCTION}", answer, meta=meta, completion=completion)


def benchmark(name: str, items: Iterable[Item], source: str) -> Benchmark:
    """The problems with what they share."""
    return Benchmark(
        name=name,
        domain="mathematics",
        items=tuple(items),
        grade=grade,
        decoding=Decoding(max_tokens=4096),
        metric="accuracy",
        source=source,
        extract=extract,
    )


def grade(item: Item, text: str) -> bool:
    """Equality of the final answer with the reference, by value."""
    return math_equal(text, item.answer)


def extract(item: Item, text: str) -> str:
    """The final answer in one spelling."""
    return final_answer(text)


def integer(answer: str | float, place: str) -> str:
    r"""A competition's integer without leading zeros, ".0" and `^\circ`."""
    text = str(answer).removesuffix("^\\circ").removesuffix(".0")
    if not text.removeprefix("-").isdecimal():
        raise ValueError(f'{place}: field "answer" is {answer!r}, expected an integer')
    return str(int(text))
