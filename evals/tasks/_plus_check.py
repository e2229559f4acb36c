"""Whether a function gives what the reference gives: the text of this file runs in the sandbox.

In: `candidate` and `reference`, functions; the inputs, each a list of arguments. Out: an
AssertionError if they differ. Rules: Liu et al. (2023), EvalPlus, evaluation of version 0.3.1.
Imports nothing but the standard library's lightest modules, because each program pays for them.
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
    """Compare on every input; each function gets arguments of its own."""
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
    # A difference, and not math.isclose, which knows no complex numbers.
    return bool(abs(found - expected) <= tolerance + RELATIVE * abs(expected))


def _root(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """HumanEval/32: any root of the polynomial will do, not the reference's alone."""
    value = sum(factor * math.pow(found, power) for power, factor in enumerate(arguments[0]))
    return bool(abs(value) <= tolerance)


def _same_set(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    return set(found) == set(expected)


def _is_there(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """The reference gives a match object or None; True and False say the same."""
    given = found if isinstance(found, bool) else found is not None
    return given == (expected is not None)


def _either_height(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Mbpp/581: the height of a pyramid may be that of its faces or its own."""
    side, height = arguments
    surface = side**2 + 2 * side * math.sqrt((side / 2) ** 2 + height**2)
    return bool(found == expected or abs(found - round(surface)) <= tolerance)


def _either_length(found: Any, expected: Any, arguments: Sequence[Any], tolerance: float) -> bool:
    """Mbpp/558: numbers of different lengths may be filled up with zeros on the left."""
    width = max(len(str(number)) for number in arguments)
    one, other = (str(number).zfill(width) for number in arguments)
    distance = sum(abs(int(a) - int(b)) for a, b in zip(one, other, strict=True))
    return bool(found in (expected, distance))


RULES = {
    "equal": _equal,
    "root": _root,
    "same set": _same_set,
    "is there": _is_there,
    "either height": _either_height,
    "either length": _either_length,
}
