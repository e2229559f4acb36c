"""Render report.html again from stored results, for example after a new version of this package.

    python -m pipelines.report DIRECTORY

DIRECTORY holds leaderboard.json and run.json, and possibly contamination.json. The training curves
are left out: leaderboard.json does not store them.
"""

import argparse
import json
from pathlib import Path

from otr.files import write_text
from pipelines.report import leaderboard, page
from pipelines.stages.contamination import FILE, Overlap


def rendered(directory: Path) -> str:
    """Return the report of the results in a directory as HTML."""
    entries = leaderboard.read(directory / "leaderboard.json")
    run = json.loads((directory / "run.json").read_text())
    benchmarks = list(entries[0].scores)
    overlaps = {}
    if (directory / FILE).is_file():
        stored = json.loads((directory / FILE).read_text())["benchmarks"]
        overlaps = {each["benchmark"]: Overlap(**each) for each in stored}
    drawn = page.figures(entries, benchmarks, run["config"]["search"]["metric"])
    return page.render(entries, benchmarks, run, drawn, overlaps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipelines.report", description=__doc__)
    parser.add_argument("directory", type=Path)
    target = parser.parse_args().directory
    write_text(target / "report.html", rendered(target))
