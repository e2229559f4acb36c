"""Tests of EvalPlus (Liu et al., 2023) from its main format: inputs and a reference solution.

The tests are Python text for the sandbox, which runs them in another interpreter than the answer.
They execute the reference and compare its results with the candidate's on the same inputs
(`_plus_check`), which takes up to 5 s of CPU time. The format "OriginFmt", which the hub has,
contains the expected values instead.
"""

import ast
import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.tasks._files import Fields

CPU_SECONDS = 30.0
MAX_TOKENS = 768  # of a base model's answer
FIELDS: Fields = {
    "entry_point": str,
    "canonical_solution": str,
    "base_input": list,
    "plus_input": (list, dict),  # {} for none
    "atol": (int, float),
}
RULES = {
    "find_zero": "root",
    "surface_Area": "either height",
    "digit_distance_nums": "either length",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "match or none"),
    **dict.fromkeys(("similar_elements", "find_char_long", "common_in_nested_lists"), "same set"),
    **dict.fromkeys(("extract_singly", "larg_nnum", "find_dissimilar", "Diff"), "same set"),
}


def tests(row: dict[str, Any], reference: str, inputs: Sequence[Sequence[Any]]) -> str:
    """Return tests that end without an exception if the function agrees with `reference`."""
    name = row["entry_point"]
    source = (
        f"{_checker()}\n_reference = {{}}\nexec({reference!r}, _reference)\n"
        "inf, nan = math.inf, math.nan\n"
        f"check(candidate, _reference[{name!r}], {list(inputs)!r}, {row['atol']}, "
        f"{RULES.get(name, 'equal')!r})\n"
    )
    return f"import copy\nimport math\nexec({source!r}, {{'candidate': {name}}})\n"


@functools.cache
def _checker() -> str:
    return Path(__file__).with_name("_plus_check.py").read_text(encoding="utf-8")


def inputs(row: dict[str, Any]) -> list[list[Any]]:
    """Return all inputs, the original ones first."""
    return [*row["base_input"], *row["plus_input"]]


def restore_types(row: dict[str, Any]) -> list[list[Any]]:
    """Return all inputs with the types of the calls in `row["assertion"]`, which JSON lost."""
    calls = [
        _literals(node)
        for node in ast.walk(ast.parse(row["assertion"]))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == row["entry_point"]
    ]
    return [
        [
            _like(value, [call[index] for call in calls if index < len(call)])
            for index, value in enumerate(arguments)
        ]
        for arguments in inputs(row)
    ]


def _literals(call: ast.Call) -> list[Any]:
    try:
        return [ast.literal_eval(argument) for argument in call.args]
    except ValueError:  # an expression such as 14*14 is a scalar, whose type JSON preserves
        return []


def _like(value: Any, examples: Sequence[Any]) -> Any:
    """Convert a value to the types of the examples."""
    numbers = examples and all(isinstance(each, int | float | complex) for each in examples)
    if isinstance(value, str) and numbers:
        with contextlib.suppress(ValueError):  # "apple" remains a string
            number = complex(value)
            return number if number.imag or complex in map(type, examples) else number.real
    return _containers_like(value, examples)


def _containers_like(value: Any, examples: Sequence[Any], nested: bool = False) -> Any:
    """Convert lists to tuples and sets like those in the examples.

    With `nested`, a list is a tuple by default, because it is inside a tuple that has tuples.
    """
    if not isinstance(value, list | dict):
        return value
    containers = [each for each in examples if isinstance(each, list | tuple | set | dict)]
    inside = [part for each in containers for part in _parts(each)]
    kinds = set(map(type, containers)) or ({tuple} if nested else set())
    if isinstance(value, dict):
        return {key: _containers_like(part, inside) for key, part in value.items()}
    kind: type = next((each for each in (list, tuple, set) if each in kinds), list)
    nested = kind is tuple and (nested or tuple in map(type, inside))
    return kind(_containers_like(part, inside, nested) for part in value)


def _parts(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container
