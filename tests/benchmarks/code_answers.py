"""Verdicts on code answers beside EvalPlus's, with its own sanitizer and its own execution.

Reads answers from a JSON Lines file with "task_id" of HumanEval+ and "answer", or without a file
writes the reference solutions in the styles of `tests.assets.code_styles`. Prints the number that
each passes and every answer that EvalPlus passes and we do not; the exit code is 1 if there is one.
Needs the extra "bench" and OTR_BENCHMARKS.
`python -m tests.benchmarks.code_answers [--answers FILE] [--every N]`
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


def reference_answers(rows: dict[str, Any], every: int) -> Iterator[tuple[str, str, str]]:
    """Yield (task, style, answer) for every n-th problem."""
    for task in list(rows)[::every]:
        row = rows[task]
        code = row["prompt"] + row["canonical_solution"]
        for style, write in STYLES.items():
            yield task, style, write(code, row["entry_point"])


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
    parser.add_argument("--answers", type=Path, help="recorded answers")
    parser.add_argument("--every", type=int, default=8, help="take every N-th problem")
    options = parser.parse_args()
    folder = published_files()
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    rows = {row["task_id"]: row for row in map(json.loads, lines)}
    items = {item.id: item for item in tasks.load("humaneval", folder).items}
    if options.answers:
        recorded = map(json.loads, options.answers.read_text(encoding="utf-8").splitlines())
        answers = ((row["task_id"], "recorded", row["answer"]) for row in recorded)
    else:
        answers = reference_answers(rows, options.every)
    counts: Counter[tuple[str, str]] = Counter()
    lost = 0
    for task, style, answer in answers:
        theirs, ours = evalplus_passes(rows[task], answer), code_passes(items[task], answer)
        counts.update({(style, "all"): 1, (style, "EvalPlus"): theirs, (style, "here"): ours})
        if theirs and not ours:
            lost += 1
            print(f"lost: {task}, {style}\n{answer}\n")
    print("| style | answers | pass in EvalPlus | pass here |\n|---|---|---|---|")
    for style in dict.fromkeys(style for style, _ in counts):
        numbers = (counts[style, column] for column in ("all", "EvalPlus", "here"))
        print(f"| {style} | {' | '.join(map(str, numbers))} |")
    print(f"\npassed by EvalPlus and not here: {lost}")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
