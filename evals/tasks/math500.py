"""MATH-500 (Lightman et al., 2023): 500 problems of the MATH test set (Hendrycks et al., 2021).

Source: `math500/test.jsonl` (the split of openai/prm800k, MIT) or the hub. Chat: see
`_mathematics`. Base models: the four worked examples of Minerva (Lewkowycz et al., 2022, appendix
D.2) as in EleutherAI/lm-evaluation-harness (minerva_math500, 4e7e0d4). They are read from the
training set of MATH, and have the spaces of that set.
"""

import dataclasses
from pathlib import Path

from evals.benchmark import Benchmark, Decoding
from evals.grading import marked_answer
from evals.tasks import _hub, _mathematics

SOURCE = _hub.Source(
    "math500/test.jsonl", "HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
)
SHOTS = _hub.Source(
    "math/train.jsonl",
    "DigitalLearningGmbH/MATH-lighteval",
    "0530c78699ea5e8eb5530600900e1f328b48acad",
    "train",
)
FIELDS = {"problem": str, "answer": str, "subject": str, "level": int, "unique_id": str}
SHOT_PARTS = (
    "Find the domain of the expression $\\frac{\\sqrt{x-2}}{\\sqrt{5-x}}$.",
    "If $\\det \\mathbf{A} = 2$ and $\\det \\mathbf{B} = 12,$",
    "Terrell usually lifts two 20-pound weights 12 times.",
    "6x-4y&=a,\\\\\n6y-9x &=b.",
)


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.meta` has "subject" and "level"."""
    examples = _examples(directory)
    items = (
        _mathematics.item(
            row["unique_id"],
            row["problem"],
            row["answer"],
            completion=examples and examples + _asked(row["problem"]),
            subject=row["subject"],
            level=row["level"],
        )
        for _, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _mathematics.benchmark("math500", items, "openai/prm800k; yongliang-wu/DFT@e153181")


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with four worked examples, graded by value as in chat."""
    return dataclasses.replace(benchmark, decoding=Decoding(max_tokens=2048, stop=("Problem:",)))


def _examples(directory: Path | None) -> str:
    rows = _hub.worked_examples(SHOTS, directory, {"problem": str, "solution": str})
    chosen = [row for part in SHOT_PARTS for row in rows if part in row["problem"]]
    return "".join(
        f"{_asked(row['problem'])} {row['solution']}\nFinal Answer: The final answer is "
        f"${marked_answer(row['solution'])}$. I hope it is correct.\n\n"
        for row in chosen
    )


def _asked(problem: str) -> str:
    return f"Problem:\n{problem}\n\nSolution:"
