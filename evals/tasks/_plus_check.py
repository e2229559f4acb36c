"""Comparison of a candidate function with a reference, by the rules of EvalPlus 0.3.1.

The sandbox executes the text of this file before the tests of each program, so it imports only
small modules of the standard library. The text is part of the identity of stored scores. Rules: Liu
et al. (2023), EvalPlus.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

RELATIVE = 1e-7


def check(
    candidate: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Sequence[Any]],
    tolerance: float,
    rule: str = "equal",
) -> None:
    """Compare the functions on every input, each with its own copy of the arguments.

    Raises:
        AssertionError: they differ.
    """
    for arguments in inputs:
        expected = reference(*copy.deepcopy(arguments))
        found = candidate(*copy.deepcopy(arguments))
        assert RULES[rule](found, expected, arguments, tolerance), (arguments, found, expected)


def _equal(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    if found == expected:
        return True
    if tolerance == 0 and _is_float(expected):
        tolerance = 1e-6
    return tolerance != 0 and type(found) is type(expected) and _close(found, expected, tolerance)


def _is_float(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(part, float) for part in value)
    return isinstance(value, float)


def _close(found: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple):
        parts = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(_close(*pair, tolerance) for pair in parts)
    # math.isclose does not support complex numbers.
    return bool(abs(found - expected) <= tolerance + RELATIVE * abs(expected))


def _root(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Accept any root of the polynomial (HumanEval/32)."""
    value = sum(factor * math.pow(found, power) for power, factor in enumerate(arguments[0]))
    return bool(abs(value) <= tolerance)


def _same_set(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    return set(found) == set(expected)


def _match_or_none(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Accept True and False for a reference that returns a match object or None."""
    matched = found if isinstance(found, bool) else found is not None
    return matched == (expected is not None)


def _either_height(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Accept the height of a pyramid or of its faces (Mbpp/581)."""
    side, height = arguments
    surface = side**2 + 2 * side * math.sqrt((side / 2) ** 2 + height**2)
    return bool(found == expected or abs(found - round(surface)) <= tolerance)


def _either_length(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Accept numbers of different lengths padded with zeros on the left (Mbpp/558)."""
    width = max(len(str(number)) for number in arguments)
    one, other = (str(number).zfill(width) for number in arguments)
    distance = sum(abs(int(a) - int(b)) for a, b in zip(one, other, strict=True))
    return bool(found in (expected, distance))


RULES = {
    "equal": _equal,
    "root": _root,
    "same set": _same_set,
    "match or none": _match_or_none,
    "either height": _either_height,
    "either length": _either_length,
}
