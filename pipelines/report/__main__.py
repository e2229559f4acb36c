"""Render report.html again from the stored results of a run.

    python -m pipelines.report DIRECTORY

DIRECTORY holds leaderboard.json, run.json and, if the run has them, data.json and
contamination.json. The report has no figures of training: leaderboard.json does not store them.
"""

import argparse
import json
from pathlib import Path

from otr.files import write_text
from pipelines.config.run_json import RUN_FILE
from pipelines.report import leaderboard, page
from pipelines.stages.contamination import FILE, Overlap


def rendered(directory: Path) -> str:
    """Return the report of the results in a directory as HTML.

    Raises:
        OSError: a file is missing.
        ValueError: leaderboard.json is missing or a file holds something else.
    """
    entries = leaderboard.read(directory / "leaderboard.json")
    run = json.loads((directory / RUN_FILE).read_text())
    benchmarks = list(entries[0].scores)
    overlaps = {}
    if (directory / FILE).is_file():
        stored = json.loads((directory / FILE).read_text())["benchmarks"]
        overlaps = {each["benchmark"]: Overlap(**each) for each in stored}
    drawn = page.figures(entries, benchmarks, run["config"]["search"]["metric"])
    return page.render(entries, benchmarks, run, drawn, overlaps, directory)


def main() -> None:
    """Write report.html into the directory that the command line names."""
    parser = argparse.ArgumentParser(
        "python -m pipelines.report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("directory", type=Path, help="holds leaderboard.json and run.json")
    directory = parser.parse_args().directory
    try:
        write_text(directory / "report.html", rendered(directory))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
