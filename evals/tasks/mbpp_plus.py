"""MBPP+ (Liu et al., 2023), version 0.2.0: 378 problems of MBPP with 35 times as many tests.

Source: `mbpp_plus/MbppPlus-v0.2.0.jsonl` of evalplus/mbppplus_release (dadf43d, Apache-2.0), or the
hub, which has the format "OriginFmt". Chat and base models: see `_code`. JSON does not preserve the
types of the inputs, so they are restored from the published assertions. `MAX_LAST_ARGUMENT` leaves
out inputs of two problems on which the reference itself takes gigabytes or half a minute.
"""

from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Item
from evals.tasks import _code, _hub, _plus
from evals.tasks._files import Fields, check

SOURCE = _hub.Source(
    "mbpp_plus/MbppPlus-v0.2.0.jsonl",
    "evalplus/mbppplus",
    "b2d74c91837c3f2a20c1299ae98133cbe7cfa077",
    names={"code": "canonical_solution"},
)
MAX_LAST_ARGUMENT = {"Mbpp/255": 20, "Mbpp/599": 10**7}  # excludes 5 and 16 inputs
FIELDS: Fields = {"task_id": (str, int), "prompt": str, "canonical_solution": str}


def load(directory: Path | None) -> Benchmark:
    """Load the problems; `Item.answer` is the reference program."""
    items = (_item(row, location) for location, row in _hub.rows(SOURCE, directory, FIELDS))
    return _code.benchmark("mbpp_plus", items, "evalplus/mbppplus_release@dadf43d")


def base(benchmark: Benchmark) -> Benchmark:
    """Return the variant with the bare docstring, whose stop strings end the program."""
    return _code.base(benchmark, _code.SCRIPT_STOPS, _plus.MAX_TOKENS)


def _item(row: dict[str, Any], location: str) -> Item:
    if "plus_input" in row:
        check(row, {**_plus.FIELDS, "assertion": str}, location)
        problem, reference = row["prompt"].strip(), row["canonical_solution"]
        tests = _plus.tests(row, reference, _inputs(row))
    else:
        check(row, {"test": str, "test_list": list}, location)
        problem, tests = f'"""\n{row["prompt"]}\n{row["test_list"][0]}\n"""', row["test"]
    return Item(
        id=f"Mbpp/{str(row['task_id']).removeprefix('Mbpp/')}",
        prompt=_code.prompt(problem),
        answer=row["canonical_solution"],
        tests=tests,
        meta={"cpu_seconds": _plus.CPU_SECONDS},
        completion=f"{problem}\n",
    )


def _inputs(row: dict[str, Any]) -> list[list[Any]]:
    limit = MAX_LAST_ARGUMENT.get(row["task_id"])
    restored = _plus.restore_types(row)
    return [each for each in restored if limit is None or each[-1] <= limit]
