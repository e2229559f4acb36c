"""A user's own benchmark in a JSON Lines file: "file:PATH.jsonl" or "file:PATH.jsonl#name".

It takes its name from the file unless "#name" gives one. Fields of each line:

    prompt   the user turn; if it is the head of a Python function, an answer may continue it
    answer   the reference answer; optional if there are tests
    tests    Python source text; optional
    grader   "math", "code", "exact" or "choice"; default "code" if there are tests,
             "math" if the answer is a number, else "exact"
    cpu_seconds, memory_mb
             limits on the code of an answer, and on its tests; optional
    id       unique in the file; default the number of the object, from 1
    domain   "mathematics", "code", "reasoning" or "other"; default by the grader
"""

import ast
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evals import grading
from evals.benchmark import Benchmark, Decoding, Item
from evals.hints import nearest_name
from evals.tasks._files import check, numbered_jsonl

DOMAINS = {"math": "mathematics", "code": "code", "exact": "reasoning", "choice": "reasoning"}
FIELDS = (
    *("prompt", "answer", "tests", "grader", "id", "domain"),
    *("cpu_seconds", "memory_mb"),
)
_CHOICES = re.compile(r"(?:\(([A-Z])\)|(?:^|(?<=[\s*]))([A-Z])[.):])(?=[\s*])")


def load(address: str) -> Benchmark:
    """Load the file.

    Raises:
        ValueError: the file is missing, or a line is malformed or can't be answered rightly; the
            message has the line and the field.
    """
    path_text, _, name = address.partition("#")
    if "/" in name:
        raise ValueError(f'"file:{address}": the name after "#" must not contain "/"')
    path = Path(path_text)
    if path_text.startswith("~/"):  # the shell does not expand it behind "file:"
        path = path.expanduser()
    rows = [(f"{path}, line {line}", row) for line, row in numbered_jsonl(path, {"prompt": str})]
    for location, row in rows:
        _check_fields(row, location)
    numbers = [
        "grader" not in row and not row.get("tests") and _is_number(row.get("answer"))
        for _, row in rows
    ]
    rows = [
        (location, {**row, "grader": "math"} if number else row)
        for (location, row), number in zip(rows, numbers, strict=True)
    ]
    notes: tuple[str, ...] = ()
    if any(numbers):
        which = "every answer is a number" if all(numbers) else "those answers are numbers"
        count = "" if all(numbers) else f"{sum(numbers)} of {len(rows)} "
        notes = (f'{count}graded as "math", since {which}',)
    items = tuple(
        _item({"id": str(number), **row}, location)
        for number, (location, row) in enumerate(rows, start=1)
    )
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
        as_text=as_text,
        notes=notes,
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
    if item.meta["grader"] == "choice":
        return grading.option_letter(text)
    if item.meta["grader"] == "math":
        return grading.final_answer(text)
    return grading.marked_answer(text) or text.strip().rpartition("\n")[2].strip()


def as_text(item: Item, text: str) -> bool:
    """Return whether an answer in mathematics was compared as text, for want of a parse."""
    return item.meta["grader"] == "math" and grading.compare(text, item.answer).as_text


def _check_fields(row: dict[str, Any], location: str) -> None:
    for name in row:
        if name not in FIELDS:
            raise ValueError(
                f'{location}: unknown field "{name}"; did you mean "{nearest_name(name, FIELDS)}"? '
                f"The fields are {', '.join(FIELDS)}"
            )
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f'{location}: field "{name}" is {value}, expected a finite number')


def _item(row: dict[str, Any], location: str) -> Item:
    check({"tests": "", **row}, {"tests": str}, location)
    grader = row.get("grader", "code" if row.get("tests") else "exact")
    if grader not in list(DOMAINS):
        near = (
            f'; did you mean "{nearest_name(grader, DOMAINS)}"?' if isinstance(grader, str) else "."
        )
        raise ValueError(
            f'{location}: field "grader" is {grader!r}{near} Known: {", ".join(DOMAINS)}'
        )
    row = {"domain": DOMAINS[grader], **row}
    if grader == "code":
        row.setdefault("answer", "")
    check(row, {"answer": (str, int, float), "domain": str, "id": (str, int)}, location)
    for name in ("answer", "id"):
        if isinstance(row[name], bool):
            raise ValueError(f'{location}: field "{name}" is {row[name]}, expected str or number')
    known = ("mathematics", "code", "reasoning", "other")
    if row["domain"] not in known:
        domain = row["domain"]
        raise ValueError(f'{location}: field "domain" is {domain!r}; known: {", ".join(known)}')
    for problem in _problems(row, grader):
        raise ValueError(f"{location}: {problem}")
    meta = {"grader": grader, "domain": row["domain"], **_limits(row, grader, location)}
    if grader == "code" and _is_function_head(row["prompt"]):
        meta["code_prompt"] = row["prompt"]
    return Item(str(row["id"]), row["prompt"], str(row["answer"]), row.get("tests", ""), meta)


def _problems(row: dict[str, Any], grader: str) -> Iterator[str]:
    """Yield why no answer, or only a wrong one, could be right."""
    answer = str(row["answer"])
    if not row["prompt"].strip():
        yield 'field "prompt" is empty'
    if grader == "code":
        yield from _problems_of_tests(row)
    elif row.get("tests"):
        yield (
            f'there are "tests", but "grader" is "{grader}": leave one of them out, or give the '
            'grader "code"'
        )
    elif not re.search(r"\w" if grader in ("math", "choice") else r"\S", answer):
        yield f'field "answer" is {answer!r}: an empty answer is never right'
    elif grader == "choice":
        yield from _problems_of_choice(row["prompt"], answer)
    elif grader == "math" and not grading.math_equal(f"\\boxed{{{answer}}}", answer):
        yield f'field "answer" is {answer!r:.80}, which the grader "math" does not understand'
    elif grader == "exact" and not isinstance(row["answer"], str):
        yield (
            f'field "answer" is the number {answer}, but the grader "exact" compares text: give '
            f'the grader "math", or the answer as "{answer}"'
        )
    elif grader == "exact" and not grading.exact_equal(answer, answer):
        yield f'field "answer" is {answer!r:.80}, which no answer can equal: try "math"'


def _problems_of_tests(row: dict[str, Any]) -> Iterator[str]:
    tests = row.get("tests")
    if tests is None:
        yield 'field "tests" is missing, which the grader "code" runs'
        return
    try:
        body = ast.parse(tests).body
    except SyntaxError as error:
        yield f'field "tests" is no Python program: {error.msg}, line {error.lineno}'
        return
    except (ValueError, RecursionError, MemoryError) as error:  # a null character, or too deep
        yield f'field "tests" is no Python program: {str(error) or "it is nested too deeply"}'
        return
    if not body:
        yield 'field "tests" is empty: every program would pass'
    elif not any(map(_runs_something, body)):
        yield 'field "tests" only defines names, so every program would pass: call what it defines'


def _runs_something(statement: ast.stmt) -> bool:
    """Return whether a statement may fail; a definition, an import or a constant does not."""
    definitions = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    if isinstance(statement, (*definitions, ast.Import, ast.ImportFrom, ast.Pass)):
        return False
    if isinstance(statement, ast.Expr | ast.Assign | ast.AnnAssign):
        return any(map(_uses_something, ast.walk(statement.value or statement)))
    return True


def _uses_something(node: ast.AST) -> bool:
    is_name = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    return is_name or isinstance(node, ast.Call | ast.Await | ast.NamedExpr)


def _problems_of_choice(prompt: str, answer: str) -> Iterator[str]:
    letter = re.sub(r"[\W_]", "", answer)
    if not re.fullmatch(r"[A-Za-z]", letter):
        yield f'field "answer" is {answer!r:.80}; the grader "choice" needs the letter of an option'
        return
    letters = {"".join(found) for found in _CHOICES.findall(prompt + "\n")}
    listed = sorted(letters) if len(letters) > 1 and "A" in letters else []
    if listed and letter.upper() not in listed:
        yield f'field "answer" is {answer!r}, but the options in "prompt" are {", ".join(listed)}'


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
    return bool(body) and isinstance(body[-1], ast.FunctionDef | ast.AsyncFunctionDef)
