"""HumanEval (Chen et al., 2021): 164 Python functions to write from signature and docstring.

In: `humaneval/HumanEval.jsonl` of openai/human-eval. Out: a `Benchmark`. Zero-shot, greedy, with
EvalPlus's chat prompt; the answer may be the whole function in a fenced block, or its body.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import code_passes
from evals.tasks._files import read_jsonl

INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem "
    "in a markdown code block:"
)
FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), str)


def load(directory: Path) -> Benchmark:
    """Reads the problems; `Item.answer` is the canonical body."""
    items = tuple(
        Item(
            id=row["task_id"],
            prompt=f"{INSTRUCTION}\n```python\n{row['prompt'].strip()}\n```",
            answer=row["canonical_solution"],
            tests=f"{row['test']}\n\ncheck({row['entry_point']})\n",
            meta={"code_prompt": row["prompt"]},
        )
        for row in read_jsonl(directory / "humaneval" / "HumanEval.jsonl", FIELDS)
    )
    return Benchmark(
        name="humaneval",
        domain="code",
        items=items,
        grade=code_passes,
        decoding=Decoding(max_tokens=1024),
        metric="pass@1",
        source="openai/human-eval@6d43fb9; prompt: evalplus/evalplus@26d6d00",
    )
