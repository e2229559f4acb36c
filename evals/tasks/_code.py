"""What the code benchmarks share: EvalPlus's prompts and what ends the answer of a base model.

In: problems with tests. Out: a `Benchmark`. Source of the prompt and the stop strings:
evalplus/evalplus (26d6d00), codegen.py and provider/utility.py; zero-shot, greedy. Its prefilled
beginning of the answer is left out. The answer of a chat may be a whole program in a fenced block,
or the body of the function.
"""

from collections.abc import Iterable

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading.answers import code_passes

INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem "
    "in a markdown code block:"
)
STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
FUNCTION_STOPS = (*STOPS, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert ")
SCRIPT_STOPS = (*STOPS, '\n"""', "\nassert")


def prompt(problem: str) -> str:
    """The user's turn."""
    return f"{INSTRUCTION}\n```python\n{problem.strip()}\n```"


def benchmark(name: str, items: Iterable[Item], source: str) -> Benchmark:
    """The problems with what they share; 1,024 tokens as in lm-evaluation-harness."""
    return Benchmark(
        name=name,
        domain="code",
        items=tuple(items),
        grade=code_passes,
        decoding=Decoding(max_tokens=1024),
        metric="pass@1",
        source=source,
    )
