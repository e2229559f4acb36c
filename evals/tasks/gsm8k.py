"""GSM8K (Cobbe et al., 2021): 1,319 word problems from grade school; answers are integers.

Source: `gsm8k/test.jsonl` of openai/grade-school-math (3101c7d, MIT) or the hub. Chat: see
`_mathematics`. Base models: gsm8k.yaml of EleutherAI/lm-evaluation-harness (4e7e0d4), with the
first five rows of the training set (its sampler first_n) and its rule "strict-match".
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import published
from evals.tasks import _hub, _mathematics

SOURCE = _hub.Source(
    "gsm8k/test.jsonl", "openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", config="main"
)
SHOTS = dataclasses.replace(SOURCE, file="gsm8k/train.jsonl", split="train")
FIELDS = {"question": str, "answer": str}


def load(directory: Path | None) -> Benchmark:
    """Load the test set; the reference answer is the text after "####"."""
    shots = _hub.worked_examples(SHOTS, directory, FIELDS)[:5]
    examples = "".join(_asked(row["question"]) + f" {row['answer']}\n\n" for row in shots)
    items: list[Item] = []
    for row in _rows(SOURCE, directory):
        completion = examples and examples + _asked(row.question)
        id = f"gsm8k/{len(items)}"
        items.append(_mathematics.item(id, row.question, row.number, completion=completion))
    return _mathematics.benchmark("gsm8k", items, "openai/grade-school-math@3101c7d")


def training_examples(directory: Path | None) -> list[dict[str, str]]:
    r"""Return the training set as {"prompt", "completion"}, in the form of the chat benchmark.

    The completion is the reference solution without its calculator notes, such as "<<48/2=24>>";
    it ends with the answer in `\boxed{}`, where "####" preceded it.
    """
    return [
        {
            "prompt": _mathematics.item("", row.question, row.number).prompt,
            "completion": f"{row.reasoning}\nThe final answer is \\boxed{{{row.number}}}.",
        }
        for row in _rows(SHOTS, directory)
    ]


@dataclasses.dataclass(frozen=True)
class _Row:
    question: str
    reasoning: str
    number: str


def _rows(source: _hub.Source, directory: Path | None) -> Iterator[_Row]:
    for location, row in _hub.rows(source, directory, FIELDS):
        reasoning, mark, number = row["answer"].rpartition("####")
        if not mark:
            raise ValueError(f'{location}: field "answer" has no "####" before its number')
        reasoning = re.sub("<<.*?>>", "", reasoning).strip()
        yield _Row(row["question"], reasoning, number.strip().replace(",", ""))


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with five worked examples, graded by the number after "####"."""
    stop = ("Question:", "</s>", "<|im_end|>")
    decoding = Decoding(max_tokens=1024, stop=stop)
    return dataclasses.replace(
        benchmark, decoding=decoding, grade=grade, extract=extract, as_text=None
    )


def grade(item: Item, text: str) -> bool:
    """Compare the first number after "#### " with the reference exactly."""
    return published.gsm8k_strict(text) == item.answer


def extract(item: Item, text: str) -> str:
    """Return the first number after "#### "."""
    return published.gsm8k_strict(text)


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"
