"""GSM8K (Cobbe et al., 2021): 1,319 word problems from grade school; answers are integers.

In: `gsm8k/test.jsonl` of openai/grade-school-math. Out: a `Benchmark`. Zero-shot, greedy, with the
prompt and the limit of Qwen2.5-Math's evaluation ("qwen-boxed").
"""

from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import math_equal
from evals.tasks._files import read_jsonl

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def load(directory: Path) -> Benchmark:
    """Reads the test set; the reference answer is the text after "####"."""
    path = directory / "gsm8k" / "test.jsonl"
    rows = list(read_jsonl(path, {"question": str, "answer": str}))
    for number, row in enumerate(rows, start=1):
        if "####" not in row["answer"]:
            raise ValueError(
                f'{path}, row {number}: field "answer" has no "####" before its number'
            )
    items = tuple(
        Item(
            id=f"gsm8k/{number}",
            prompt=f"{row['question']}\n{INSTRUCTION}",
            answer=row["answer"].rpartition("####")[2].strip().replace(",", ""),
        )
        for number, row in enumerate(rows)
    )
    return Benchmark(
        name="gsm8k",
        domain="mathematics",
        items=items,
        grade=grade,
        decoding=Decoding(max_tokens=2048),
        metric="accuracy",
        source="openai/grade-school-math@3101c7d; settings: QwenLM/Qwen2.5-Math@a45202b",
    )


def grade(item: Item, text: str) -> bool:
    """Equality of numbers."""
    return math_equal(text, item.answer)
