"""Sets of real numbers: intervals and their unions, from brackets, inequalities or lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.grading import evaluation, formulas
from evals.grading.formulas import Node


@dataclass(frozen=True)
class End:
    """An end of an interval: its formula, and its value for the order of intervals."""

    node: Node
    value: Any
    is_open: bool


@dataclass(frozen=True)
class Interval:
    """The numbers between two ends."""

    low: End
    high: End


@dataclass(frozen=True)
class RealSet:
    """Disjoint intervals in ascending order, and the variable that they restrict, if named."""

    intervals: tuple[Interval, ...]
    variable: str = ""


FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
"""Each relation with its sides exchanged."""
_INFINITY = Node("constant", value="inf")
_MINUS_INFINITY = Node("neg", (_INFINITY,))


def _end(node: Node, is_open: bool) -> End | None:
    value = evaluation.constant(node)
    if value is None:
        return None
    return End(node, value, is_open or abs(value) == float("inf"))


def interval(low: Node, high: Node, low_open: bool, high_open: bool) -> RealSet | None:
    """Return the interval between two constants; None if they are no constants in order."""
    start, end = _end(low, low_open), _end(high, high_open)
    if start is None or end is None or not start.value < end.value:
        return None
    return RealSet((Interval(start, end),))


def points(nodes: Sequence[Node]) -> RealSet | None:
    """Return the set of some numbers; None if they are no different constants."""
    ends = [_end(node, False) for node in nodes]
    found = sorted((end for end in ends if end is not None), key=lambda end: end.value)
    if len(found) < len(nodes) or len({end.value for end in found}) < len(found):
        return None
    return RealSet(tuple(Interval(end, end) for end in found))


LINE = RealSet(
    (
        Interval(
            End(_MINUS_INFINITY, float("-inf"), True),
            End(_INFINITY, float("inf"), True),
        ),
    )
)


def from_relation(sides: Sequence[Node], operators: Sequence[str]) -> RealSet | None:
    """Return the solutions of a < x <= b, x > a, x != a or |x - a| < b; None for any other."""
    if len(sides) == 2 and sides[0].kind == "abs":
        return _from_absolute(sides[0].args[0], operators[0], sides[1])
    names = [side.value for side in sides if side.kind == "symbol"]
    constants = [side for side in sides if not formulas.symbols(side)]
    if len(names) != 1 or len(constants) != len(sides) - 1 or "=" in operators:
        return None
    at = next(index for index, side in enumerate(sides) if side.kind == "symbol")
    found: RealSet | None = None
    if len(sides) == 2:
        operator = operators[0]
        if at == 1:
            operator = FLIPPED[operator]
        bound = constants[0]
        if operator == "!=":
            hole = points([bound])
            found = without(LINE, hole) if hole else None
        elif operator in ("<", "<="):
            found = interval(_MINUS_INFINITY, bound, True, operator == "<")
        else:
            found = interval(bound, _INFINITY, operator == ">", True)
    elif len(sides) == 3 and at == 1:
        if set(operators) <= {"<", "<="}:
            found = interval(sides[0], sides[2], operators[0] == "<", operators[1] == "<")
        elif set(operators) <= {">", ">="}:
            found = interval(sides[2], sides[0], operators[1] == ">", operators[0] == ">")
    return RealSet(found.intervals, str(names[0])) if found else None


def _from_absolute(inner: Node, operator: str, bound: Node) -> RealSet | None:
    """Return the solutions of |x + a| < b, for any inequality."""
    symbol, shift = inner.args if inner.kind == "add" else (inner, formulas.rational(0))
    radius = evaluation.constant(bound)
    if symbol.kind != "symbol" or formulas.symbols(shift) or radius is None or radius <= 0:
        return None
    middle = Node("neg", (shift,))
    low, high = Node("add", (middle, Node("neg", (bound,)))), Node("add", (middle, bound))
    is_open = operator in ("<", ">")
    if operator in ("<", "<="):
        pieces = [interval(low, high, is_open, is_open)]
    elif operator in (">", ">="):
        pieces = [
            interval(_MINUS_INFINITY, low, True, is_open),
            interval(high, _INFINITY, is_open, True),
        ]
    else:
        return None
    found = union([piece for piece in pieces if piece])
    return RealSet(found.intervals, str(symbol.value)) if found else None


def union(sets: Sequence[RealSet]) -> RealSet | None:
    """Return the union; None if the sets restrict different variables."""
    variable = _variable(sets)
    if variable is None:
        return None
    pieces = sorted((piece for each in sets for piece in each.intervals), key=_order)
    merged: list[Interval] = []
    for piece in pieces:
        if merged and _touch(merged[-1].high, piece.low):
            last = merged.pop()
            high = max(last.high, piece.high, key=lambda end: (end.value, not end.is_open))
            low = last.low
            if piece.low.value == low.value and not piece.low.is_open:
                low = piece.low
            piece = Interval(low, high)
        merged.append(piece)
    return RealSet(tuple(merged), variable)


def both(sets: Sequence[RealSet]) -> RealSet | None:
    """Return the intersection of inequalities in a list; their union if it is empty."""
    variable = _variable(sets)
    if variable is None:
        return None
    common = sets[0].intervals
    for each in sets[1:]:
        crossed = [_cross(one, other) for one in common for other in each.intervals]
        common = tuple(piece for piece in crossed if piece is not None)
    return RealSet(common, variable) if common else union(sets)


def without(whole: RealSet, holes: RealSet) -> RealSet | None:
    """Return the set without some points; None if the holes are not points."""
    pieces = list(whole.intervals)
    for hole in holes.intervals:
        if hole.low.value != hole.high.value:
            return None
        for index, piece in enumerate(pieces):
            if piece.low.value < hole.low.value < piece.high.value:
                cut = End(hole.low.node, hole.low.value, True)
                pieces[index : index + 1] = [Interval(piece.low, cut), Interval(cut, piece.high)]
                break
    return RealSet(tuple(pieces), whole.variable)


def equal(one: RealSet, other: RealSet) -> bool:
    """Return whether two sets are equal, and so are their variables if both name one."""
    if one.variable and other.variable and one.variable != other.variable:
        return False
    if len(one.intervals) != len(other.intervals):
        return False
    return all(
        a.is_open == b.is_open and (a.value == b.value or evaluation.same(a.node, b.node))
        for left, right in zip(one.intervals, other.intervals, strict=True)
        for a, b in ((left.low, right.low), (left.high, right.high))
    )


def _variable(sets: Sequence[RealSet]) -> str | None:
    names = {each.variable for each in sets} - {""}
    return None if len(names) > 1 else "".join(names)


def _order(piece: Interval) -> tuple[Any, bool]:
    return piece.low.value, piece.low.is_open


def _touch(high: End, low: End) -> bool:
    return low.value < high.value or (
        low.value == high.value and not (low.is_open and high.is_open)
    )


def _cross(one: Interval, other: Interval) -> Interval | None:
    low = max(one.low, other.low, key=lambda end: (end.value, end.is_open))
    high = min(one.high, other.high, key=lambda end: (end.value, not end.is_open))
    if low.value < high.value:
        return Interval(low, high)
    closed = low.value == high.value and not low.is_open and not high.is_open
    return Interval(low, high) if closed else None
