"""AMC 2023: 40 problems of the American Mathematics Competitions 12; answers are integers.

Source: `amc23/test.jsonl` of QwenLM/Qwen2.5-Math (a45202b, MIT) or the hub. Prompt and rule: see
`_mathematics`. With so few items, draw several answers per item, for example "amc23@16".
"""

from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _hub, _mathematics
from evals.tasks._files import Fields

SOURCE = _hub.Source(
    "amc23/test.jsonl", "math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057"
)
FIELDS: Fields = {"id": (int, str), "question": str, "answer": (int, float, str)}


def load(directory: Path | None) -> Benchmark:
    """Load the problems."""
    items = (
        _mathematics.item(
            f"amc23/{row['id']}", row["question"], _mathematics.integer(row["answer"], location)
        )
        for location, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _mathematics.benchmark("amc23", items, "QwenLM/Qwen2.5-Math@a45202b")
