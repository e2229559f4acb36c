"""The values that a search tries for a setting, as they are written: "loguniform(1e-6, 1e-4)".

Nothing is evaluated: the text is a function of a fixed list, with literals as arguments.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otr.hints import did_you_mean, repeated

_ARGUMENTS = {
    "choice": "two or more values",
    "uniform": "low, high",
    "loguniform": "low, high",
    "quniform": "low, high, step",
    "randint": "low, high",
}
_USE = (
    "write choice(4,16,64), uniform(0,1), loguniform(1e-6,1e-4), quniform(0,1,0.25), randint(1,8)"
)
_LITERALS = "use numbers, True, False, or strings in quotes, as in choice('cosine', 'linear')"


@dataclass(frozen=True)
class Domain:
    """The values of one setting."""

    function: str
    arguments: tuple[Any, ...]

    @property
    def text(self) -> str:
        """The domain as it is written; `parse` reads the same domain from it."""
        return f"{self.function}({', '.join(map(_written, self.arguments))})"

    @property
    def is_log(self) -> bool:
        """Whether the logarithm of the values is uniform."""
        return self.function == "loguniform"

    @property
    def is_whole(self) -> bool:
        """Whether all values are whole numbers."""
        return self.function != "uniform" and not self.is_log and all(map(_is_int, self.arguments))

    def listed(self) -> list[Any] | None:
        """Return every value in order; None if there is no end of them."""
        if self.function == "choice":
            return [*self.arguments]
        if self.function in ("uniform", "loguniform"):
            return None
        low, high, step = (*self.arguments, 1)[:3]
        return [low + i * step for i in range(math.floor((high - low) / step * (1 + 1e-9)) + 1)]

    def ends(self) -> list[Any]:
        """Return the lowest and the highest value; of a choice, every value."""
        return [*self.arguments] if self.function == "choice" else [*self.arguments[:2]]


def parse_space(space: Mapping[str, str]) -> dict[str, Domain]:
    """Return the domain of each setting; "train.optim.lr" is "optim.lr".

    Raises:
        ValueError: one can't be read (see `parse`), or a setting is named twice.
    """
    found: dict[str, Domain] = {}
    for key, text in space.items():
        name = key.removeprefix("train.")
        if name in found:
            raise ValueError(f"the search names {name} twice: give its values once")
        found[name] = parse(name, text)
    return found


def parse(key: str, text: str) -> Domain:
    """Return the domain that a text describes.

    Args:
        key: the setting, for messages.
        text: the text, as in "choice(4, 16)".

    Raises:
        ValueError: no such function (the nearest one is named), or it can't have these arguments.
    """
    where = f"search of {key}={text}"
    if not isinstance(text, str):
        raise ValueError(f"search of {key}: {text!r} is not a string: {_USE}")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{where} can't be read: {_USE}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
        raise ValueError(f"{where} is not understood: {_USE}")
    name = call.func.id
    if name not in _ARGUMENTS:
        raise ValueError(f"{where}: unknown function {name!r}: {did_you_mean(name, _ARGUMENTS)}")
    try:
        values = tuple(ast.literal_eval(argument) for argument in call.args)
    except ValueError as error:
        raise ValueError(f"{where}: {_LITERALS}") from error
    domain = Domain(name, values)
    if problem := _problem(domain):
        raise ValueError(f"{where}: {problem}")
    return domain


def _problem(domain: Domain) -> str:
    """Return what is wrong with the arguments of a domain; "" if nothing is."""
    name, values = domain.function, domain.arguments
    if name == "choice":
        return _problem_of_choice(values)
    if len(values) != len(_ARGUMENTS[name].split(",")):
        return f"{name} has the arguments {_ARGUMENTS[name]}"
    if not all(map(is_number, values)):
        return f"the arguments of {name} must be finite numbers"
    low, high = values[:2]
    if low >= high:
        return f"low {low:g} is not below high {high:g}"
    if name == "loguniform" and low <= 0:
        return f"low {low:g} has no logarithm: use a number > 0, or uniform"
    if name == "randint" and not domain.is_whole:
        return "randint needs whole numbers; use uniform or quniform"
    if name == "quniform" and not 0 < values[2] <= high - low:
        return f"step {values[2]:g} does not fit between {low:g} and {high:g}"
    return ""


def _problem_of_choice(values: Sequence[Any]) -> str:
    if len(values) == 1 and isinstance(values[0], list | tuple):
        return "write the values without brackets, as in choice(4,16,64)"
    if len(values) < 2:
        return "choice needs two or more values; give a single one as an option instead"
    if not all(isinstance(value, int | float | str) for value in values):
        return _LITERALS
    if not all(map(math.isfinite, (value for value in values if isinstance(value, float)))):
        return "numbers must be finite"
    twice = repeated(values)
    return f"the value {twice[0]!r} occurs twice" if twice else ""


def _written(value: Any) -> str:
    """Return a value such that it can be read again without loss."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else repr(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
