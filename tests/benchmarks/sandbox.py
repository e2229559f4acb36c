"""The sandbox on HumanEval and MBPP: verdicts and speed, also on a busy machine.

Prints a Markdown table. Needs OTR_BENCHMARKS. `python -m tests.benchmarks.sandbox [--hogs N]`
"""

import argparse
import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evals.benchmark import Item
from evals.grading import code_passes
from evals.sandbox import runner
from evals.tasks import mbpp
from tests.benchmarks.gold import published_files

FILES = {
    "humaneval": "humaneval/HumanEval.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
    "mbpp-sanitized": "mbpp/sanitized-mbpp.json",
}
Answers = list[tuple[Item, str]]


def problems(folder: Path, name: str) -> tuple[Answers, Answers]:
    """Return (item, answer) pairs with the reference programs, and with empty functions."""
    text = (folder / FILES[name]).read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else map(json.loads, text.splitlines())
    solved = list(_humaneval(rows) if name == "humaneval" else _mbpp(rows))
    return solved, [(item, _empty(program)) for item, program in solved]


def _humaneval(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[Item, str]]:
    for row in rows:
        tests = f"{row['test']}\n\ncheck({row['entry_point']})\n"
        item = Item(row["task_id"], row["prompt"], "", tests)
        yield item, f"```python\n{row['prompt']}{row['canonical_solution']}\n```"


def _mbpp(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[Item, str]]:
    for row in rows:
        before = [row["test_setup_code"]] if "test_setup_code" in row else row["test_imports"]
        tests = "\n".join([*before, *row["test_list"]])
        item = Item(f"mbpp/{row['task_id']}", "", "", tests, meta={"cpu_seconds": mbpp.CPU_SECONDS})
        yield item, f"```python\n{row['code']}\n```"


def _empty(answer: str) -> str:
    tree = ast.parse(answer.removeprefix("```python\n").removesuffix("```"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return f"```python\n{ast.unparse(tree)}\n```"


def run_all(answers: Answers) -> list[tuple[Item, bool]]:
    """Return every item with its verdict; run two programs at a time."""
    with ThreadPoolExecutor(2) as pool:
        verdicts = pool.map(lambda answer: code_passes(*answer), answers)
        return list(zip((item for item, _ in answers), verdicts, strict=True))


def timed(answers: Answers) -> tuple[int, float]:
    """Return the number that passed, and programs per second."""
    started = time.monotonic()
    passed = sum(verdict for _, verdict in run_all(answers))
    return passed, len(answers) / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hogs", type=int, default=8, help="busy processes during the last row")
    arguments = parser.parse_args()
    folder = published_files()
    print(f"isolation layers: {', '.join(runner.isolation_layers())}; 2 programs at a time\n")
    print("| programs | number | passed | per second |\n|---|---|---|---|")
    for name in FILES:
        for kind, answers in zip(("reference", "empty"), problems(folder, name), strict=True):
            passed, rate = timed(answers)
            print(f"| {name}, {kind} | {len(answers)} | {passed} | {rate:.0f} |", flush=True)
    solved, _ = problems(folder, "humaneval")
    hogs = [subprocess.Popen([sys.executable, "-c", "while 1: 0"]) for _ in range(arguments.hogs)]
    try:
        passed, rate = timed(solved)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    beside = f"humaneval, reference, beside {len(hogs)} busy processes"
    print(f"| {beside} | {len(solved)} | {passed} | {rate:.0f} |")


if __name__ == "__main__":
    main()
