"""Prompt, answer rule and decoding of the multiple-choice benchmarks.

Prompt and rule are those of TIGER-AI-Lab/MMLU-Pro (evaluate_from_api.py, compute_accuracy.py),
zero-shot. An answer without a letter is wrong, whereas the original guesses one.
"""

import dataclasses
from collections.abc import Iterable, Sequence

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import published

LETTERS = published.LETTERS
INSTRUCTION = (
    "The following are multiple choice questions (with answers) about {subject}. Think step by "
    'step and then finish your answer with "the answer is (X)" where X is the correct letter '
    "choice."
)


def benchmark(name: str, items: Iterable[Item], source: str) -> Benchmark:
    """Return a benchmark of MMLU's kind, with up to 2,048 new tokens as in MMLU-Pro."""
    return Benchmark(
        name=name,
        domain="reasoning",
        items=tuple(items),
        grade=grade,
        decoding=Decoding(max_tokens=2048),
        metric="accuracy",
        source=source,
        extract=extract,
    )


def letter_only(benchmark: Benchmark, decoding: Decoding) -> Benchmark:
    """Return the same questions for answers that start with the letter, without reasoning."""
    return dataclasses.replace(
        benchmark, decoding=decoding, grade=grade_letter, extract=extract_letter
    )


def prompt(subject: str, asked: str) -> str:
    """Return the user turn for a question with its options."""
    return f"{INSTRUCTION.format(subject=subject)}\n\nQuestion: {asked}"


def lettered(options: Sequence[str], mark: str = ".") -> str:
    """Return the options, one per line, each after its letter and the mark."""
    pairs = zip(LETTERS, options, strict=False)
    return "\n".join(f"{letter}{mark} {option}" for letter, option in pairs)


def grade(item: Item, text: str) -> bool:
    """Compare the letter that MMLU-Pro's rule finds with the reference."""
    return published.mmlu_pro(text) == item.answer


def extract(item: Item, text: str) -> str:
    """Return the letter that MMLU-Pro's rule finds."""
    return published.mmlu_pro(text)


def grade_letter(item: Item, text: str) -> bool:
    """Compare the first character with the reference."""
    return extract_letter(item, text) == item.answer


def extract_letter(item: Item, text: str) -> str:
    """Return the first character."""
    return text.strip()[:1]
