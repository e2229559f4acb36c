"""BBEH Mini (Kazemi et al., 2025): 460 questions of BIG-Bench Extra Hard; mean over all of them.

Source: `bbeh/mini/data.json` of google-deepmind/bbeh (80d12ca), or the rows of BBEH/bbeh on the hub
whose field "mini" is set. Prompt and rule: see `bbeh`.
"""

import dataclasses
from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _hub, bbeh
from evals.tasks._files import examples

SOURCE = dataclasses.replace(bbeh.SOURCE, file="bbeh/mini/data.json")


def load(directory: Path | None) -> Benchmark:
    """Load the questions; the file does not contain their kinds."""
    path = SOURCE.path(directory)
    if path is None:
        rows = [row for _, row in _hub.hub_rows(SOURCE, bbeh.FIELDS) if row["mini"]]
    else:
        rows = [row for _, _, row in examples([path])]
    items = (bbeh.item("mini", number, row) for number, row in enumerate(rows))
    return bbeh.benchmark("bbeh_mini", items, average="items")
