r"""The value of an answer: a number, or a structure such as a list, a set or an equation.

`evals.grading.value_parser` reads it from a text, and `evals.grading.value_equality` compares two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.grading import realsets
from evals.grading.formulas import Node
from evals.grading.quantities import Quantity
from evals.grading.realsets import RealSet


@dataclass(frozen=True)
class Items:
    """Values in a bracket. "" is a list without one, which has no order; so has a set."""

    opening: str
    closing: str
    items: tuple[Value, ...]


@dataclass(frozen=True)
class Relation:
    """Sides with operators between them, such as y = 2x + 1."""

    sides: tuple[Value, ...]
    operators: tuple[str, ...]

    @property
    def formulas(self) -> tuple[Node, ...]:
        """The sides as formulas; () if one of them is another kind of value."""
        nodes = tuple(side.node for side in self.sides if isinstance(side, Quantity))
        return nodes if len(nodes) == len(self.sides) else ()


@dataclass(frozen=True)
class Named:
    """A value with a name, such as x = 5."""

    name: str
    value: Value


@dataclass(frozen=True)
class Grid:
    """A matrix, or the lines of a definition by cases."""

    kind: str
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True)
class Approximated:
    """A constant and the decimal that is written behind it, as in 14/3 \u2248 4.67."""

    exact: Value
    rounded: Value


Value = Quantity | Items | Relation | Named | Grid | RealSet | Approximated


def as_set(value: Value | None) -> RealSet | None:
    r"""Return the set of real numbers that a value is, such as x > 3, \{1, 2\} or (1, 2); or None.

    A list without a bracket is the union of its intervals.
    """
    if isinstance(value, RealSet):
        return value
    if isinstance(value, Named) and isinstance(value.value, RealSet | Items):
        return as_set(value.value)
    if not isinstance(value, Items):
        return None
    if not value.opening and all(isinstance(item, Items) for item in value.items):
        sets = as_sets(value.items)
        return realsets.union(sets) if sets else None
    nodes = [item.node for item in value.items if isinstance(item, Quantity)]
    if len(nodes) < len(value.items):
        return None
    if value.opening == "{":
        return realsets.points(nodes)
    if value.opening and len(nodes) == 2:
        low, high = nodes
        return realsets.interval(low, high, value.opening == "(", value.closing == ")")
    return None


def as_sets(values: Sequence[Value]) -> list[RealSet] | None:
    """Return all values as sets of real numbers; None if one of them is none."""
    sets = [each for each in map(as_set, values) if each is not None]
    return sets if len(sets) == len(values) else None
