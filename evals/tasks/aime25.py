r"""AIME 2025: 30 problems of the American Invitational Mathematics Examination; integers to 999.

Source: `aime25/test.jsonl` of yongliang-wu/DFT (e153181, MIT) or the hub. Prompt and rule: see
`_mathematics`. One answer in the file has a degree sign (336^\circ), which is removed. With so few
items, draw several answers per item, for example "aime25@16".
"""

from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _hub, _mathematics

SOURCE = _hub.Source(
    "aime25/test.jsonl",
    "math-ai/aime25",
    "563bb8404243c5f09de6ec262f2db674fe5bce9b",
    names={"problem": "question"},
)
FIELDS = {"question": str, "answer": str}


def load(directory: Path | None) -> Benchmark:
    """Load the problems."""
    items = (
        _mathematics.item(
            f"aime25/{number}", row["question"], _mathematics.integer(row["answer"], location)
        )
        for number, (location, row) in enumerate(_hub.rows(SOURCE, directory, FIELDS))
    )
    return _mathematics.benchmark("aime25", items, "yongliang-wu/DFT@e153181")
