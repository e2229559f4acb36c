"""What the multiple-choice benchmarks share: letters of options, prompt and answer rule.

In: a question and its options. Out: text of prompts, and the letter that an answer gives. Prompt
and rule are those of TIGER-AI-Lab/MMLU-Pro (evaluate_from_api.py, compute_accuracy.py), zero-shot
and without a random letter where there is none: that is wrong here.
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
    """The questions with what MMLU and its descendants share; 2,048 tokens as MMLU-Pro allows."""
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
    """The same questions, answered by a letter without reasoning."""
    return dataclasses.replace(
        benchmark, decoding=decoding, grade=grade_letter, extract=extract_letter
    )


def prompt(subject: str, asked: str) -> str:
    """The user's turn, from a question with its options below."""
    return f"{INSTRUCTION.format(subject=subject)}\n\nQuestion: {asked}"


def lettered(options: Sequence[str], mark: str = ".") -> str:
    """One option a line, each behind its letter and the mark."""
    pairs = zip(LETTERS, options, strict=False)
    return "\n".join(f"{letter}{mark} {option}" for letter, option in pairs)


def grade(item: Item, text: str) -> bool:
    """The letter, by MMLU-Pro's rule."""
    return published.mmlu_pro(text) == item.answer


def extract(item: Item, text: str) -> str:
    """The letter, by MMLU-Pro's rule."""
    return published.mmlu_pro(text)


def grade_letter(item: Item, text: str) -> bool:
    """The first character."""
    return extract_letter(item, text) == item.answer


def extract_letter(item: Item, text: str) -> str:
    """The first character."""
    return text.strip()[:1]
