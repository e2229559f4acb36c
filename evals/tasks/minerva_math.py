r"""Minerva's OCW set (Lewkowycz et al., 2022): 272 problems of university courses in the sciences.

Source: `minerva_math/test.jsonl` of QwenLM/Qwen2.5-Math (a45202b, MIT) or the hub. Prompt and rule:
see `_mathematics`. The reference answer is the `\boxed{}` of the solution. The task "minerva_math"
of lm-evaluation-harness is another set, MATH: see `math500`.
"""

from pathlib import Path

from evals.benchmark import Benchmark, Item
from evals.grading import marked_answer
from evals.tasks import _hub, _mathematics

SOURCE = _hub.Source(
    "minerva_math/test.jsonl",
    "math-ai/minervamath",
    "ee46ddc498933b1977577953250ca5c66be64f96",
    names={"question": "problem"},
)


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.meta["subject"]` is the course, "" if unknown."""
    items: list[Item] = []
    for location, row in _hub.rows(SOURCE, directory, {"problem": str}):
        answer = row["answer"] if "answer" in row else marked_answer(row.get("solution", ""))
        if not answer:
            raise ValueError(f'{location}: neither field "answer" nor a \\boxed{{}} in "solution"')
        id, course = f"minerva_math/{len(items)}", row.get("type", "")
        items.append(_mathematics.item(id, row["problem"], answer, subject=course))
    return _mathematics.benchmark("minerva_math", items, "QwenLM/Qwen2.5-Math@a45202b")
