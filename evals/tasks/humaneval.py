"""HumanEval (Chen et al., 2021): 164 Python functions to write from signature and docstring.

Source: `humaneval/HumanEval.jsonl` of openai/human-eval (6d43fb9, MIT) or the hub. Chat: see
`_code`. Base models: the bare prompt, with the stop strings of EleutherAI/lm-evaluation-harness
(humaneval.yaml, 4e7e0d4).
"""

from pathlib import Path

from evals.benchmark import Benchmark, Item
from evals.tasks import _code, _hub

SOURCE = _hub.Source(
    "humaneval/HumanEval.jsonl",
    "openai/openai_humaneval",
    "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
)
FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), str)


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.answer` is the body of the canonical solution."""
    items = (
        Item(
            id=row["task_id"],
            prompt=_code.prompt(row["prompt"]),
            answer=row["canonical_solution"],
            tests=f"{row['test']}\n\ncheck({row['entry_point']})\n",
            meta={"code_prompt": row["prompt"]},
            completion=row["prompt"],
        )
        for _, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _code.benchmark("humaneval", items, "openai/human-eval@6d43fb9")


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with the bare prompt, whose stop strings end the function."""
    return _code.base(benchmark, ("\nclass", "\ndef", "\n#", "\nif", "\nprint"))
