"""A benchmark of one's own: a file with one JSON object a line.

In: "PATH.jsonl" or "PATH.jsonl#name". Out: a `Benchmark`, named after the file unless renamed.
Fields: "prompt" (the user's turn), "answer" (may be left out beside "tests"), and optionally "id",
"domain", "grader" ("math", "code", "exact" or "choice"; "code" if there are tests, else "exact")
and "tests" (Python text). A code prompt that is itself the head of a function may be answered by
its continuation.
"""

import ast
from pathlib import Path
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item
from evals.grading import answers
from evals.tasks._files import check, read_jsonl

DOMAINS = {"math": "mathematics", "code": "code", "exact": "reasoning", "choice": "reasoning"}


def load(address: str) -> Benchmark:
    """Reads the file; ValueError with line and field if something is wrong with it."""
    path_text, _, name = address.partition("#")
    if "/" in name:
        raise ValueError(f'"file:{address}": the name after "#" may have no "/"')
    path = Path(path_text)
    rows = enumerate(read_jsonl(path, {"prompt": str}), start=1)
    items = tuple(_item(row, f"{path}, row {number}") for number, row in rows)
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
    )


def grade(item: Item, text: str) -> bool:
    """Grades by the item's own grader."""
    if item.meta["grader"] == "code":
        return answers.code_passes(item, text)
    graders = {
        "math": answers.math_equal,
        "exact": answers.exact_equal,
        "choice": answers.choice_equal,
    }
    return graders[item.meta["grader"]](text, item.answer)


def extract(item: Item, text: str) -> str:
    """The final answer, for majority voting."""
    if item.meta["grader"] == "choice" and grade(item, text):
        return item.answer
    if item.meta["grader"] == "math":
        return answers.final_answer(text)
    return answers.marked_answer(text) or text.strip().rpartition("\n")[2].strip()


def _item(row: dict[str, Any], place: str) -> Item:
    grader = row.get("grader", "code" if row.get("tests") else "exact")
    if grader not in DOMAINS:
        raise ValueError(f'{place}: field "grader" is {grader!r}; known: {", ".join(DOMAINS)}')
    number = place.rpartition(" ")[2]
    row = {"id": number, "domain": DOMAINS[grader], **row}
    if grader == "code":
        row.setdefault("answer", "")
    check(row, {"answer": (str, int, float), "domain": str, "id": (str, int)}, place)
    if grader == "code":
        check(row, {"tests": str}, place)
    known = ("mathematics", "code", "reasoning", "other")
    if row["domain"] not in known:
        raise ValueError(f'{place}: field "domain" is {row["domain"]!r}; known: {", ".join(known)}')
    meta = {"grader": grader, "domain": row["domain"]}
    if grader == "code" and _is_function_head(row["prompt"]):
        meta["code_prompt"] = row["prompt"]
    return Item(str(row["id"]), row["prompt"], str(row["answer"]), row.get("tests", ""), meta)


def _is_function_head(prompt: str) -> bool:
    try:
        body = ast.parse(prompt + "\n    pass\n").body
    except (SyntaxError, ValueError):
        return False
    return bool(body) and isinstance(body[-1], ast.FunctionDef)
