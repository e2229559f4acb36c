"""AIME 2024: 30 problems of the American Invitational Mathematics Examination; integers to 999.

Source: `aime24/test.jsonl` of QwenLM/Qwen2.5-Math (a45202b, MIT) or the hub. Prompt and rule: see
`_mathematics`. Leading zeros of the answers in the files, as in "023", are removed. With so few
items, draw several answers per item, for example "aime24@16".
"""

from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _hub, _mathematics

SOURCE = _hub.Source(
    "aime24/test.jsonl",
    "HuggingFaceH4/aime_2024",
    "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
    "train",
)
FIELDS = {"id": int, "problem": str, "answer": str}


def load(directory: Path | None) -> Benchmark:
    """Load the problems."""
    items = (
        _mathematics.item(
            f"aime24/{row['id']}", row["problem"], _mathematics.integer(row["answer"], location)
        )
        for location, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _mathematics.benchmark("aime24", items, "QwenLM/Qwen2.5-Math@a45202b")
