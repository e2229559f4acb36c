"""A user's own benchmark in a JSON Lines file: "file:PATH.jsonl" or "file:PATH.jsonl#name".

It takes its name from the file unless "#name" gives one. Fields of each line:

    prompt   the user turn; if it is the head of a Python function, an answer may continue it
    answer   the reference answer; optional if there are tests
    tests    Python source text; optional
    grader   "math", "code", "exact" or "choice"; default "code" if there are tests, else "exact",
             or "math" if every answer of the file is a number and no line names a grader
    cpu_seconds, memory_mb
             limits on the code of an answer, and on its tests; optional
    id       unique in the file; default the number of the object, from 1
    domain   "mathematics", "code", "reasoning" or "other"; default by the grader
"""

import ast
import math
from pathlib import Path
from typing import Any

from evals import grading
from evals.benchmark import Benchmark, Decoding, Item
from evals.tasks._files import check, read_jsonl

DOMAINS = {"math": "mathematics", "code": "code", "exact": "reasoning", "choice": "reasoning"}


def load(address: str) -> Benchmark:
    """Load the file.

    Raises:
        ValueError: the file is missing or malformed, with line and field.
    """
    path_text, _, name = address.partition("#")
    if "/" in name:
        raise ValueError(f'"file:{address}": the name after "#" must not contain "/"')
    path = Path(path_text)
    rows = list(read_jsonl(path, {"prompt": str}))
    notes: tuple[str, ...] = ()
    if all(_is_number(row.get("answer")) and not row.keys() & {"grader", "tests"} for row in rows):
        rows = [{**row, "grader": "math"} for row in rows]
        notes = ('graded as "math", since every answer is a number',)
    items = tuple(_item(row, f"{path}, row {number}") for number, row in enumerate(rows, start=1))
    domains = {item.meta["domain"] for item in items}
    return Benchmark(
        name=name or path.stem,
        domain=domains.pop() if len(domains) == 1 else "other",
        items=items,
        grade=grade,
        decoding=Decoding(max_tokens=512),
        metric="accuracy",
        source=str(path),
        extract=None if "code" in {item.meta["grader"] for item in items} else extract,
        notes=notes if items else (),
    )


def grade(item: Item, text: str) -> bool:
    """Grade by the grader of the item."""
    if item.meta["grader"] == "code":
        return grading.code_passes(item, text)
    graders = {
        "math": grading.math_equal,
        "exact": grading.exact_equal,
        "choice": grading.choice_equal,
    }
    return graders[item.meta["grader"]](text, item.answer)


def extract(item: Item, text: str) -> str:
    """Return the final answer, for majority voting."""
    if item.meta["grader"] == "choice" and grade(item, text):
        return item.answer
    if item.meta["grader"] == "math":
        return grading.final_answer(text)
    return grading.marked_answer(text) or text.strip().rpartition("\n")[2].strip()


def _item(row: dict[str, Any], location: str) -> Item:
    grader = row.get("grader", "code" if row.get("tests") else "exact")
    if grader not in DOMAINS:
        raise ValueError(f'{location}: field "grader" is {grader!r}; known: {", ".join(DOMAINS)}')
    row = {"id": location.rpartition(" ")[2], "domain": DOMAINS[grader], **row}
    if grader == "code":
        row.setdefault("answer", "")
    check(row, {"answer": (str, int, float), "domain": str, "id": (str, int)}, location)
    if grader == "code":
        check(row, {"tests": str}, location)
    known = ("mathematics", "code", "reasoning", "other")
    if row["domain"] not in known:
        domain = row["domain"]
        raise ValueError(f'{location}: field "domain" is {domain!r}; known: {", ".join(known)}')
    meta = {"grader": grader, "domain": row["domain"], **_limits(row, grader, location)}
    if grader == "code" and _is_function_head(row["prompt"]):
        meta["code_prompt"] = row["prompt"]
    return Item(str(row["id"]), row["prompt"], str(row["answer"]), row.get("tests", ""), meta)


def _limits(row: dict[str, Any], grader: str, location: str) -> dict[str, Any]:
    """Return the limits that a line sets for its code."""
    limits = {}
    for field, least in (("cpu_seconds", 1), ("memory_mb", 64)):
        if grader == "code" and field in row:
            check(row, {field: (int, float)}, location)
            if row[field] < least:
                raise ValueError(
                    f'{location}: field "{field}" is {row[field]}; give at least {least}'
                )
            limits[field] = row[field] if field == "cpu_seconds" else int(row[field])
    return limits


def _is_number(answer: Any) -> bool:
    if isinstance(answer, bool):
        return False
    try:
        return math.isfinite(float(str(answer).strip().replace(",", "")))
    except ValueError:
        return False


def _is_function_head(prompt: str) -> bool:
    try:
        body = ast.parse(prompt + "\n    pass\n").body
    except (SyntaxError, ValueError):
        return False
    return bool(body) and isinstance(body[-1], ast.FunctionDef)
