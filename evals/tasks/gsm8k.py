"""GSM8K (Cobbe et al., 2021): 1,319 word problems from grade school; answers are integers.

In: `gsm8k/test.jsonl` of openai/grade-school-math (3101c7d, MIT) or the hub. Out: a `Benchmark`.
Chat: see `_mathematics`. Base models: EleutherAI/lm-evaluation-harness, gsm8k.yaml (4e7e0d4), with
the first five rows of the training set, as by its sampler first_n, and its rule "strict-match".
"""

import dataclasses
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
    """Reads the test set; the reference answer is the text after "####"."""
    shots = _hub.worked(SHOTS, directory, FIELDS)[:5]
    examples = "".join(_asked(row["question"]) + f" {row['answer']}\n\n" for row in shots)
    items: list[Item] = []
    for place, row in _hub.rows(SOURCE, directory, FIELDS):
        if "####" not in row["answer"]:
            raise ValueError(f'{place}: field "answer" has no "####" before its number')
        answer = row["answer"].rpartition("####")[2].strip().replace(",", "")
        completion = examples and examples + _asked(row["question"])
        id = f"gsm8k/{len(items)}"
        items.append(_mathematics.item(id, row["question"], answer, completion=completion))
    return _mathematics.benchmark("gsm8k", items, "openai/grade-school-math@3101c7d")


def base(benchmark: Benchmark) -> Benchmark:
    """Five worked examples; the number after "####"."""
    stop = ("Question:", "</s>", "<|im_end|>")
    decoding = Decoding(max_tokens=1024, stop=stop)
    return dataclasses.replace(benchmark, decoding=decoding, grade=grade, extract=extract)


def grade(item: Item, text: str) -> bool:
    """The harness's exact match of the first number after "#### "."""
    return published.gsm8k_strict(text) == item.answer


def extract(item: Item, text: str) -> str:
    """The first number after "#### "."""
    return published.gsm8k_strict(text)


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"
