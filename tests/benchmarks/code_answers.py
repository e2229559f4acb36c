"""Verdicts on code answers beside EvalPlus's, with its own sanitizer and its own execution.

Reads answers from JSON Lines files with "task_id" of HumanEval+ and "completion", as EvalPlus's own
tools write them, or without a file writes the reference solutions in the styles of
`tests.assets.code_styles`. Prints the number that each passes and every answer that EvalPlus passes
and we do not; the exit code is 1 if there is one for which `EXPLAINED` has no reason.
Needs the extra "bench" and OTR_BENCHMARKS.
`python -m tests.benchmarks.code_answers [--answers FILE ...] [--every N]`
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalplus.eval import PASS, untrusted_check
from evalplus.gen.util import trusted_exec
from evalplus.sanitize import sanitize

from evals import tasks
from evals.grading import code_passes
from tests.assets.code_styles import STYLES
from tests.benchmarks.gold import published_files

FILE = "humaneval_plus/HumanEvalPlus-v0.1.10.jsonl"
EXPLAINED = {"HumanEval/95": "the original tests have a dict with a key 5, EvalPlus's have '5'"}


def reference_answers(rows: dict[str, Any], every: int) -> Iterator[tuple[str, str, str]]:
    """Yield (task, style, answer) for every n-th problem."""
    for task in list(rows)[::every]:
        row = rows[task]
        code = row["prompt"] + row["canonical_solution"]
        for style, write in STYLES.items():
            yield task, style, write(code, row["entry_point"])


def recorded_answers(files: list[Path], every: int) -> Iterator[tuple[str, str, str]]:
    """Yield (task, "recorded", answer) for every n-th of the different answers in the files."""
    rows = (json.loads(line) for f in files for line in f.read_text("utf-8").splitlines() if line)
    different = dict.fromkeys((row["task_id"], "recorded", row["completion"]) for row in rows)
    yield from list(different)[::every]


def evalplus_passes(row: dict[str, Any], answer: str) -> bool:
    """Return EvalPlus's verdict on the original tests."""
    name, inputs = row["entry_point"], row["base_input"]
    expected, times = trusted_exec(
        row["prompt"] + row["canonical_solution"], inputs, name, record_time=True
    )
    program = sanitize(answer, name)
    verdict, _ = untrusted_check(
        "humaneval", program, inputs, name, expected, row["atol"], times, fast_check=True
    )
    return bool(verdict == PASS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, nargs="+", help="files of recorded answers")
    parser.add_argument("--every", type=int, default=8, help="take every N-th problem or answer")
    options = parser.parse_args()
    folder = published_files()
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    rows = {row["task_id"]: row for row in map(json.loads, lines)}
    items = {item.id: item for item in tasks.load("humaneval", folder).items}
    if options.answers:
        answers = recorded_answers(options.answers, options.every)
    else:
        answers = reference_answers(rows, options.every)
    counts: Counter[tuple[str, str]] = Counter()
    lost: Counter[str] = Counter()
    for task, style, answer in answers:
        theirs, ours = evalplus_passes(rows[task], answer), code_passes(items[task], answer)
        counts.update({(style, "all"): 1, (style, "EvalPlus"): theirs, (style, "here"): ours})
        if theirs and not ours:
            lost[task] += 1
            print(f"lost: {task}, {style}: {EXPLAINED.get(task, 'not explained')}\n{answer}\n")
    print("| style | answers | pass in EvalPlus | pass here |\n|---|---|---|---|")
    for style in dict.fromkeys(style for style, _ in counts):
        numbers = (counts[style, column] for column in ("all", "EvalPlus", "here"))
        print(f"| {style} | {' | '.join(map(str, numbers))} |")
    unexplained = sum(count for task, count in lost.items() if task not in EXPLAINED)
    print(f"\npassed by EvalPlus and not here: {lost.total()}, unexplained: {unexplained}")
    sys.exit(unexplained > 0)


if __name__ == "__main__":
    main()
