"""MATH-500 (Lightman et al., 2023): 500 problems of the MATH test set (Hendrycks et al., 2021).

In: `math500/test.jsonl`. Out: a `Benchmark`. Zero-shot, greedy, with the prompt and the limit of
Qwen2.5-Math's evaluation ("qwen-boxed").
"""

from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import math_equal
from evals.tasks._files import read_jsonl

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
FIELDS = {"problem": str, "answer": str, "subject": str, "level": int, "unique_id": str}


def load(directory: Path) -> Benchmark:
    """Reads the problems; subject and level go into `Item.meta`."""
    items = tuple(
        Item(
            id=row["unique_id"],
            prompt=f"{row['problem']}\n{INSTRUCTION}",
            answer=row["answer"],
            meta={"subject": row["subject"], "level": row["level"]},
        )
        for row in read_jsonl(directory / "math500" / "test.jsonl", FIELDS)
    )
    return Benchmark(
        name="math500",
        domain="mathematics",
        items=items,
        grade=grade,
        decoding=Decoding(max_tokens=2048),
        metric="accuracy",
        source="openai/prm800k's 500; settings: QwenLM/Qwen2.5-Math@a45202b",
    )


def grade(item: Item, text: str) -> bool:
    """Equality of expressions."""
    return math_equal(text, item.answer)
