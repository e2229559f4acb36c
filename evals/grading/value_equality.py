"""Equality of two answers' values.

The rules, each with an example, are in docs/reference/grading.md.
"""

import re
from collections.abc import Sequence

from evals.grading import evaluation, formulas, quantities, realsets
from evals.grading.formulas import Node
from evals.grading.quantities import Quantity
from evals.grading.realsets import FLIPPED, RealSet
from evals.grading.values import Approximated, Grid, Items, Named, Relation, Value, as_set


def equal(answer: Value, gold: Value) -> bool:
    """Return whether two values are equal."""
    answer, gold = _without_names(answer, gold)
    if isinstance(answer, Approximated):
        return equal(answer.exact, gold) or equal(answer.rounded, gold)
    if isinstance(gold, Approximated):
        return equal(answer, gold.exact)
    if isinstance(answer, Quantity) and isinstance(gold, Quantity):
        return quantities.equal(answer, gold)
    if isinstance(answer, Grid) and isinstance(gold, Grid):
        return answer.kind == gold.kind and _rows_equal(answer, gold)
    if isinstance(answer, RealSet) or isinstance(gold, RealSet):
        one, other = as_set(answer), as_set(gold)
        if one is not None and other is not None:
            return realsets.equal(one, other)
    if isinstance(answer, Relation | Named) and isinstance(gold, Relation | Named):
        return _relations_equal(_as_relation(answer), _as_relation(gold))
    answer, gold = _as_row(answer, gold), _as_row(gold, answer)
    return isinstance(answer, Items) and isinstance(gold, Items) and _items_equal(answer, gold)


# Names


def _without_names(answer: Value, gold: Value) -> tuple[Value, Value]:
    """Drop a name that only one of the values has, and brackets around one value."""
    answer, gold = _without_brackets(answer), _without_brackets(gold)
    if isinstance(answer, Named) and isinstance(gold, Named):
        if _same_name(answer.name, gold.name) or _is_tuple(answer.name) or _is_tuple(gold.name):
            return _without_brackets(answer.value), _without_brackets(gold.value)
        return answer, gold
    if isinstance(answer, Named) and not isinstance(gold, Relation):
        return _without_names(answer.value, gold)
    if isinstance(gold, Named) and not isinstance(answer, Relation):
        return _without_names(answer, gold.value)
    return answer, gold


def _without_brackets(value: Value) -> Value:
    """Return the only value of a list or set that has one."""
    while isinstance(value, Items) and len(value.items) == 1 and value.opening in ("", "{"):
        value = value.items[0]
    return value


def _same_name(one: str, other: str) -> bool:
    """Return whether two names are the same; y and f(x) are."""
    return len({re.sub(r"^[a-zA-Z]\(x\)$", "y", name) for name in (one, other)}) == 1


def _is_tuple(name: str) -> bool:
    return name.startswith("(")


# Relations


def _as_relation(value: Relation | Named) -> Relation:
    if isinstance(value, Relation):
        return value
    name = quantities.parse(value.name, False)
    return Relation((name or Quantity(Node("symbol", value=value.name)), value.value), ("=",))


def _relations_equal(answer: Relation, gold: Relation) -> bool:
    """Return whether two relations of two sides each have proportional differences."""
    left, right = answer.formulas, gold.formulas
    if len(left) != len(right) or not left:
        return False
    if len(left) > 2 or not any(map(formulas.symbols, left + right)):
        flipped = tuple(FLIPPED[operator] for operator in reversed(answer.operators))
        return any(
            operators == gold.operators and all(map(evaluation.same, sides, right))
            for sides, operators in ((left, answer.operators), (left[::-1], flipped))
        )
    differences = [Node("add", (a, Node("neg", (b,)))) for a, b in (left, right)]
    sign = evaluation.proportional(*differences)
    operator = answer.operators[0] if sign > 0 else FLIPPED[answer.operators[0]]
    return bool(sign) and operator == gold.operators[0]


# Lists, sets, tuples and matrices


def _rows_equal(answer: Grid, gold: Grid) -> bool:
    return len(answer.rows) == len(gold.rows) and all(map(_equal_in_order, answer.rows, gold.rows))


def _as_row(value: Value, other: Value) -> Value:
    """Return a vector as a tuple, or a matrix as a tuple of rows, if it is compared with one."""
    if isinstance(value, Grid) and value.kind == "matrix" and isinstance(other, Items):
        if all(isinstance(item, Items) for item in other.items):
            rows = tuple(Items("[", "]", row) for row in value.rows)
            return Items(other.opening, other.closing, rows)
        if len(value.rows) == 1:
            return Items("(", ")", value.rows[0])
        if all(len(row) == 1 for row in value.rows):
            return Items("(", ")", tuple(row[0] for row in value.rows))
    return value


def _items_equal(answer: Items, gold: Items) -> bool:
    if len(answer.items) != len(gold.items):
        return False
    if _one_names_coordinates(answer, gold):
        return _equal_in_order(answer.items, gold.items)
    brackets = {f"{each.opening}{each.closing}" for each in (answer, gold)}
    if brackets <= {"", "{}"}:
        return _equal_in_any_order(answer.items, gold.items)
    is_list_in_python = brackets == {"", "[]"} and len(gold.items) > 2
    is_tuple = brackets <= {"()", "[]"} and len(gold.items) != 2
    if len(brackets) > 1 and not is_list_in_python and not is_tuple:
        return False
    return _equal_in_order(answer.items, gold.items)


def _one_names_coordinates(answer: Items, gold: Items) -> bool:
    """Return whether one list names all of its values, each by another name, and the other not all.

    Then x = 1, y = 2 is the tuple (1, 2). The names x_1, x_2 are a series of values instead.
    """
    has_names = [all(isinstance(item, Named) for item in each.items) for each in (answer, gold)]
    if has_names[0] == has_names[1]:
        return False
    names = [item.name for item in (*answer.items, *gold.items) if isinstance(item, Named)]
    is_series = len({re.sub(r"_\d+$", "", name) for name in names}) == 1
    return len(set(names)) == len(answer.items) and not is_series


def _equal_in_order(answer: Sequence[Value], gold: Sequence[Value]) -> bool:
    return len(answer) == len(gold) and all(map(equal, answer, gold))


def _equal_in_any_order(answer: Sequence[Value], gold: Sequence[Value]) -> bool:
    left = list(answer)
    for item in gold:
        found = next((each for each in left if equal(each, item)), None)
        if found is None:
            return False
        left.remove(found)
    return True
