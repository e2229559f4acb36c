"""HumanEval+ (Liu et al., 2023), version 0.1.10: HumanEval with 80 times as many tests.

Source: `humaneval_plus/HumanEvalPlus-v0.1.10.jsonl` of evalplus/humanevalplus_release (200defc,
Apache-2.0), or the hub, which has the format "OriginFmt". Chat and base models: see `_code`. In
HumanEval/32 any root of the polynomial passes. The test in "OriginFmt" calls its own helper
wrongly, so that even the canonical solution fails; `_tests` corrects that call.
"""

from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Item
from evals.tasks import _code, _hub, _plus
from evals.tasks._files import check

SOURCE = _hub.Source(
    "humaneval_plus/HumanEvalPlus-v0.1.10.jsonl",
    "evalplus/humanevalplus",
    "d32357cf319e50e9c8d8dab5ea876c72b0fd321b",
)
FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution"), str)
WRONG_CALL, RIGHT_CALL = "_poly(*candidate(*inp), inp)", "abs(_poly(*inp, candidate(*inp)))"


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.answer` is the body of the canonical solution."""
    items = (
        Item(
            id=row["task_id"],
            prompt=_code.prompt(row["prompt"]),
            answer=row["canonical_solution"],
            tests=_tests(row, location),
            meta={"code_prompt": row["prompt"], "cpu_seconds": _plus.CPU_SECONDS},
            completion=row["prompt"].strip() + "\n",
        )
        for location, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _code.benchmark("humaneval_plus", items, "evalplus/humanevalplus_release@200defc")


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with the bare prompt, whose stop strings end the function."""
    return _code.base(benchmark, _code.FUNCTION_STOPS, _plus.MAX_TOKENS)


def _tests(row: dict[str, Any], location: str) -> str:
    if "plus_input" in row:
        check(row, _plus.FIELDS, location)
        reference = row["prompt"] + row["canonical_solution"]
        return _plus.tests(row, reference, _plus.inputs(row))
    check(row, {"test": str}, location)
    return f"{row['test'].replace(WRONG_CALL, RIGHT_CALL)}\n\ncheck({row['entry_point']})\n"
