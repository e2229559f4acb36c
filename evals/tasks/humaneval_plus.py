"""HumanEval+ (Liu et al., 2023), version 0.1.10: HumanEval with 80 times as many tests.

In: `humaneval_plus/HumanEvalPlus-v0.1.10.jsonl` of evalplus/humanevalplus_release (200defc,
Apache-2.0), or the hub, which has its "OriginFmt". Out: a `Benchmark`. Chat and base models: see
`_code`. In HumanEval/32 any root of the polynomial passes; its test in "OriginFmt" calls its own
helper wrongly, so that even the canonical solution fails there: here that call is put right.
"""

import dataclasses
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item
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
    """Reads the problems; `Item.answer` is the canonical body."""
    items = (
        Item(
            id=row["task_id"],
            prompt=_code.prompt(row["prompt"]),
            answer=row["canonical_solution"],
            tests=_tests(row, place),
            meta={"code_prompt": row["prompt"], "cpu_seconds": _plus.CPU_SECONDS},
            completion=row["prompt"].strip() + "\n",
        )
        for place, row in _hub.rows(SOURCE, directory, FIELDS)
    )
    return _code.benchmark("humaneval_plus", items, "evalplus/humanevalplus_release@200defc")


def base(benchmark: Benchmark) -> Benchmark:
    """The bare prompt; the answer ends where the function does."""
    decoding = Decoding(max_tokens=768, stop=_code.FUNCTION_STOPS)
    return dataclasses.replace(benchmark, decoding=decoding)


def _tests(row: dict[str, Any], place: str) -> str:
    if "plus_input" in row:
        check(row, _plus.FIELDS, place)
        reference = row["prompt"] + row["canonical_solution"]
        return _plus.tests(row, reference, _plus.inputs(row))
    check(row, {"test": str}, place)
    return f"{row['test'].replace(WRONG_CALL, RIGHT_CALL)}\n\ncheck({row['entry_point']})\n"
