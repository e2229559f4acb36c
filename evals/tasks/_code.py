"""Prompt, stop strings and decoding of the code benchmarks, zero-shot and greedy as in EvalPlus.

Source of the prompt and the stop strings: evalplus/evalplus (26d6d00), codegen.py and
provider/utility.py. Its prefilled beginning of the answer is left out. A chat model may answer with
a program in a fenced block, or with the body of the function.
"""

import dataclasses
from collections.abc import Iterable

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import code_passes

INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem "
    "in a markdown code block:"
)
STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
FUNCTION_STOPS = (*STOPS, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
SCRIPT_STOPS = (*STOPS, '\n"""', "\nassert")
MAX_TOKENS = 1024


def prompt(problem: str) -> str:
    """Return the user turn for a problem."""
    return f"{INSTRUCTION}\n```python\n{problem.strip()}\n```"


def benchmark(name: str, items: Iterable[Item], source: str) -> Benchmark:
    """Return a benchmark of code problems, with 1,024 new tokens as in lm-evaluation-harness."""
    return Benchmark(
        name=name,
        domain="code",
        items=tuple(items),
        grade=code_passes,
        decoding=Decoding(MAX_TOKENS),
        metric="pass@1",
        source=source,
    )


def base(benchmark: Benchmark, stop: tuple[str, ...], max_tokens: int = MAX_TOKENS) -> Benchmark:
    """Return the variant for base models, whose answers end at the stop strings."""
    return dataclasses.replace(benchmark, decoding=Decoding(max_tokens, stop=stop))
