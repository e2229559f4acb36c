"""BIG-Bench Extra Hard (Kazemi et al., 2025): 4,520 questions of 23 kinds.

Source: `bbeh/bbeh_*.json`, which are benchmark_tasks/*/task.json of google-deepmind/bbeh (80d12ca,
CC BY 4.0; leave their canary string in), or the hub. Prompt: that of the paper, zero-shot. Rule:
bbeh/evaluate.py. The score is the harmonic mean over the kinds.
"""

from collections.abc import Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import published
from evals.tasks import _hub
from evals.tasks._files import Fields, examples

SOURCE = _hub.Source(
    "bbeh/bbeh_boardgame_qa.json",
    "BBEH/bbeh",
    "08e07a803851822c04399782ece3c4a07ce419f9",
    "train",
)
FIELDS: Fields = {"task": str, "input": str, "target": str, "mini": (bool, int)}
INSTRUCTION = (
    "Think step by step, and when you provide the final answer, please use the prefix "
    '"The answer is:" without any modification, and provide the answer directly, with no '
    'formatting, no bolding, and no markup. For instance: "The answer is: 42" or "The answer is: '
    'yes". If the question is multiple choice with a single correct answer, the final answer must '
    'only be the letter corresponding to the correct answer. For example, "The answer is: (a)".'
)


def load(directory: Path | None) -> Benchmark:
    """Load all kinds in alphabetical order; `Item.meta["subject"]` is the kind."""
    items = (item(kind, number, row) for kind, number, row in _questions(directory))
    return benchmark("bbeh", items, average="harmonic over subjects")


def benchmark(name: str, items: Iterator[Item], average: str) -> Benchmark:
    """Return a benchmark of BBEH's questions, all of them or the smaller set."""
    return Benchmark(
        name=name,
        domain="reasoning",
        items=tuple(items),
        grade=grade,
        decoding=Decoding(max_tokens=4096),
        metric="accuracy",
        source="google-deepmind/bbeh@80d12ca",
        extract=extract,
        average=average,
    )


def item(kind: str, number: int, row: dict[str, str]) -> Item:
    """Return one question."""
    prompt = f"{row['input']}\n\n{INSTRUCTION}"
    return Item(f"{kind}/{number}", prompt, row["target"], meta={"subject": kind})


def grade(item: Item, text: str) -> bool:
    """Compare as the authors do, except that an empty answer never equals "[]"."""
    return bool(text.strip()) and published.bbeh_equal(text, item.answer)


def extract(item: Item, text: str) -> str:
    """Return the answer that the authors' comparison extracts."""
    return published.bbeh(text)


def _questions(directory: Path | None) -> Iterator[tuple[str, int, dict[str, str]]]:
    first = SOURCE.path(directory)
    if first is not None:
        yield from examples(sorted(first.parent.glob("bbeh_*.json")) or [first])
        return
    for number, (_, row) in enumerate(_hub.hub_rows(SOURCE, FIELDS)):
        yield row["task"], number, row
