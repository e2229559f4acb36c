"""MBPP (Austin et al., 2021): 500 short Python functions from one sentence and three assertions.

Source: `mbpp/mbpp.jsonl` (google-research, CC BY 4.0; the copy of deepseek-ai/DeepSeek-Coder,
2f9fd85) or the hub; the test problems have the ids 11 to 510, the training problems 601 to 974.
The assertions are part of the prompt, as in the paper (section 3.1), since they contain the name of
the function. Base models: problems 2, 3 and 4 are worked examples, as in
EleutherAI/lm-evaluation-harness (mbpp.yaml, 4e7e0d4).
"""

import dataclasses
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Item
from evals.tasks import _code, _hub

SOURCE = _hub.Source(
    "mbpp/mbpp.jsonl",
    "google-research-datasets/mbpp",
    "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    config="full",
)
SHOTS = dataclasses.replace(SOURCE, split="prompt")
FIELDS = {"task_id": int, "text": str, "code": str, "test_setup_code": str, "test_list": list}
IDS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
"""Ids of the problems of each split, by its name on the hub."""
CPU_SECONDS = 30.0  # the reference program of mbpp/123 takes 5.5 on a slow machine


def load(directory: Path | None) -> Benchmark:
    """Load the test problems; `Item.answer` is the reference program."""
    candidates = _hub.worked_examples(SHOTS, directory, FIELDS)
    shots = [row for row in candidates if row["task_id"] in (2, 3, 4)]
    examples = "".join(f"{_task(row)}[BEGIN]\n{row['code']}\n[DONE]\n\n" for row in shots)
    items = (
        Item(
            id=f"mbpp/{row['task_id']}",
            prompt=_prompt(row),
            answer=row["code"],
            tests="\n".join([row["test_setup_code"], *row["test_list"]]),
            meta={"cpu_seconds": CPU_SECONDS},
            completion=examples and f"{examples}{_task(row)}[BEGIN]\n",
        )
        for _, row in _hub.rows(SOURCE, directory, FIELDS)
        if row["task_id"] in IDS["test"]
    )
    return _code.benchmark("mbpp", items, "google-research/mbpp; DeepSeek-Coder@2f9fd85")


def examples(split: str, directory: Path | None) -> list[dict[str, str]]:
    """Return the split `train` or `validation` as {"prompt", "completion"}, asked as in the test.

    The completion is the reference program in a markdown code block.
    """
    source = dataclasses.replace(SOURCE, split=split)
    return [
        {"prompt": _prompt(row), "completion": f"```python\n{_program(row)}\n```"}
        for _, row in _hub.rows(source, directory, FIELDS)
        if row["task_id"] in IDS[split]
    ]


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with three worked examples; an answer ends at [DONE]."""
    return _code.base(benchmark, ("[DONE]",))


def _prompt(row: dict[str, Any]) -> str:
    return f"{_task(row)}\nWrite the program in a markdown code block."


def _program(row: dict[str, Any]) -> str:
    """Return the reference program; the published file has carriage returns and trailing spaces."""
    return "\n".join(line.rstrip() for line in row["code"].splitlines()).strip()


def _task(row: dict[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    return (
        f"You are an expert Python programmer, and here is your task: {row['text'].strip()} "
        f"Your code should pass these tests:\n\n{tests}\n"
    )
