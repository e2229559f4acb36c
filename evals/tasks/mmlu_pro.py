"""MMLU-Pro (Wang et al., 2024): 12,032 questions with three to ten options, from 14 subjects.

Source: `mmlu_pro/test.jsonl` (TIGER-AI-Lab/MMLU-Pro, Apache-2.0; the copy of
zai-org/glm-simple-evals, 2974f4e) or the hub. Chat: see `_choice`, zero-shot. Base models: five
worked examples of the same subject from `validation.jsonl`, as in EleutherAI/lm-evaluation-harness
(mmlu_pro, 4e7e0d4). In question 3983 "answer" and "answer_index" disagree; "answer" counts, as in
the harness.
"""

import dataclasses
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item
from evals.tasks import _choice, _hub

SOURCE = _hub.Source(
    "mmlu_pro/test.jsonl", "TIGER-Lab/MMLU-Pro", "527feea0afed1de15a8c115abf7be4c912123315"
)
SHOTS = dataclasses.replace(SOURCE, file="mmlu_pro/validation.jsonl", split="validation")
FIELDS = {"question": str, "options": list, "answer": str, "category": str, "cot_content": str}


def load(directory: Path | None) -> Benchmark:
    """Load the test set; `Item.meta["subject"]` is the subject."""
    examples: dict[str, str] = {}
    for row in _hub.worked_examples(SHOTS, directory, FIELDS):
        reasoning = row["cot_content"].removeprefix("A: Let's think step by step.")
        example = f"{_asked(row)}{reasoning}\n\n"
        examples[row["category"]] = examples.get(row["category"], "") + example
    items = (
        Item(
            id=f"mmlu_pro/{row['question_id']}",
            prompt=_choice.prompt(row["category"], _question(row)),
            answer=row["answer"],
            meta={"subject": row["category"]},
            completion=_completion(row, examples.get(row["category"], "")),
        )
        for _, row in _hub.rows(SOURCE, directory, {**FIELDS, "question_id": int})
    )
    return _choice.benchmark("mmlu_pro", items, "TIGER-AI-Lab/MMLU-Pro; glm-simple-evals@2974f4e")


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with five worked examples with reasoning, by the rule of MMLU-Pro."""
    return dataclasses.replace(benchmark, decoding=Decoding(max_tokens=2048, stop=("Question:",)))


def _completion(row: dict[str, Any], examples: str) -> str:
    head = _choice.INSTRUCTION.format(subject=row["category"])
    return examples and f"{head}\n\n{examples}{_asked(row)}"


def _asked(row: dict[str, Any]) -> str:
    return f"Question:\n{_question(row)}\nAnswer: Let's think step by step."


def _question(row: dict[str, Any]) -> str:
    listed = _choice.lettered([option.strip() for option in row["options"]])
    return f"{row['question']}\nOptions:\n{listed}"
