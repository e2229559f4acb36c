r"""The structure of an answer: lists, tuples, intervals, sets, equations, matrices, named values.

`parse` reads all of a normalized answer into one of the classes below or returns None; `equal`
compares two of them. The rules, each with an example, are in docs/reference/grading.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from evals.grading import evaluation, formulas, quantities, realsets
from evals.grading.formulas import Node
from evals.grading.quantities import Quantity
from evals.grading.realsets import FLIPPED, RealSet

_OPEN, _CLOSE = "([{", ")]}"
_RELATION = re.compile(
    r"\\(?:leqslant|geqslant|leq|geq|le|ge|lt|gt|neq|ne|in|approx|equiv|cong)(?![a-zA-Z])"
    r"|<=|>=|!=|:=|==|<|>|="
)
_OPERATORS = {
    **dict.fromkeys(("\\leqslant", "\\leq", "\\le", "<="), "<="),
    **dict.fromkeys(("\\geqslant", "\\geq", "\\ge", ">="), ">="),
    **dict.fromkeys(("\\neq", "\\ne", "!="), "!="),
    **dict.fromkeys(("=", ":=", "==", "\\approx", "\\cong"), "="),
    **{"\\lt": "<", "<": "<", "\\gt": ">", ">": ">", "\\in": "in", "\\equiv": "equiv"},
}
_NAME = re.compile(
    r"\\[Dd]elta\s*\\?[a-zA-Z]+|(?:m?\\(?:angle|triangle|measuredangle|overline|text|mathrm|operatorname|mathbf|vec)\s*)?"
    r"(?:\{[A-Za-z .]+\}|\\?[A-Za-z]+'*)(?:\s*_(?:\w|\{[^{}]*\}|\\[a-z]+))?'*"
    r"(?:\^\{-1\})?(?:\s*\((?:[\\A-Za-z0-9_, ]|\\theta|-\d|[a-z]\([^()]*\))+\))?"
    r"|(?:P|Pr|\\Pr|\\mathbb\{P\})\s*\([^()]*\)"
    r"|\\(?:sin|cos|tan|cot|sec|csc)\s*\(?(?:\\angle\s*)?(?:[A-Z]+|\\(?:theta|alpha|beta|gamma|phi))\)?|\|[A-Z]{2}\||\\frac\{d.{1,12}\}\{d.{1,12}\}"
    r"|\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)|\\(?:dot|ddot|bar|hat)\s*\{[a-zA-Z]\}"
    r"|[A-Z]\s*\\cup\s*[A-Z]|[A-Z]\s*\\cap\s*[A-Z]"
)
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[pbBv]?(?:small)?matrix|array|cases)\*?\}(?:\{[lcr|]+\})?(?P<body>.*)"
    r"\\end\{(?P=kind)\*?\}"
)
_CONDITION = re.compile(r"^(?:\\text\s*\{\s*)?(?:if|for|when|where)\b\s*\}?\s*")
_ALIGNED = re.compile(r"\\begin\{(aligned|align|gathered|cases)\*?\}(.*)\\end\{\1\*?\}")
_APPROXIMATE = ("\\approx", "\\cong")
_BUILDER = re.compile(r"\\mid(?![a-zA-Z])|\||:(?!=)")


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


@lru_cache(4096)
def parse(text: str, leading_words: bool = False) -> Value | None:
    """Return the structure of a normalized answer; None if not all of it is understood.

    Args:
        text: normalized text.
        leading_words: whether words may stand before a number, as in an answer in a sentence.
    """
    try:
        return _value(text.strip(), leading_words)
    except RecursionError:
        return None


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
        return answer.kind == gold.kind and _all_equal(answer.rows, gold.rows)
    one, other = _as_set(answer), _as_set(gold)
    if (
        one is not None
        and other is not None
        and (isinstance(answer, RealSet | Relation) or isinstance(gold, RealSet | Relation))
    ):
        return realsets.equal(one, other)
    if _is_relation(answer) and _is_relation(gold):
        return _relations_equal(_relation(answer), _relation(gold))
    return _items_equal(answer, gold)


# Parsing


def _value(text: str, leading_words: bool = False) -> Value | None:
    """Parse by the loosest sign in the text: or, comma, relation, colon, union, bracket."""
    text = _without_outer_group(re.sub(r"^(?:\\approx|\\simeq|\\sim|\\therefore|=)\s*", "", text))
    if not text:
        return None
    text = re.sub(r"^[(\[]\s*(\\begin\{array\}.*\\end\{array\})\s*[)\]]$", r"\1", text)
    lines = _equations(text)
    if lines:
        return _list(lines)
    matrix = _MATRIX.fullmatch(text)
    if matrix and text.count("\\begin") == 1:
        return _grid(matrix["kind"], matrix["body"])
    for separator, keep, parse_parts in _SIGNS:
        parts = _split(text, separator, keep)
        if len(parts) > 1:
            return parse_parts(parts)
    known = _KNOWN_SETS.get(text) or _KNOWN_SETS.get(text.lower())
    if known:
        return known
    bracketed = _bracketed(text)
    return bracketed if bracketed is not None else _leaf(text, leading_words)


def _leaf(text: str, leading_words: bool) -> Value | None:
    quantity = quantities.parse(text, leading_words)
    if quantity is None:
        return None
    node = quantity.node
    if formulas.contains(node, "pm") or formulas.contains(node, "mp"):
        both = [Quantity(formulas.choose_signs(node, plus)) for plus in (True, False)]
        return Items("", "", tuple(both))
    return quantity


def _equations(text: str) -> list[str] | None:
    """Return the lines of aligned equations; a line that starts with a sign continues one."""
    found = _ALIGNED.fullmatch(text)
    if not found or (found[1] == "cases" and "&" in found[2]):
        return None
    lines: list[str] = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?", found[2].replace("&", "")):
        if lines and _RELATION.match(line.strip()):
            lines[-1] += line
        elif line.strip():
            lines.append(line.strip(" ,."))
    return lines


def _without_outer_group(text: str) -> str:
    """Remove braces around the whole text, which LaTeX does not show."""
    while text.startswith("{") and text.endswith("}") and _closing(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closing(text: str, start: int) -> int:
    r"""Return the index of the bracket that closes the one at `start`; -1 if none does.

    Brackets of intervals need not be of one kind; those in \{ \} count too.
    """
    depth = 0
    for at in range(start, len(text)):
        if text[at] in _OPEN:
            depth += 1
        elif text[at] in _CLOSE:
            depth -= 1
            if depth == 0:
                return at
    return -1


def _split(text: str, separator: re.Pattern[str], keep: bool = False) -> list[str]:
    r"""Split where a separator stands outside of all brackets and of \begin ... \end."""
    parts, start, at, depth = [], 0, 0, 0
    while at < len(text):
        character = text[at]
        if character in _OPEN or text.startswith(("\\begin", "\\langle"), at):
            depth += 1
        elif character in _CLOSE or text.startswith(("\\end", "\\rangle"), at):
            depth -= 1
        elif depth == 0 and (found := separator.match(text, at)):
            parts.append(text[start:at].strip())
            if keep:
                parts.append(found.group())
            start = at = found.end()
            continue
        at += 2 if character == "\\" and not text[at + 1 : at + 2].isalpha() else 1
        if character == "\\" and text[at - 1 : at] in tuple("{}"):
            depth += 1 if text[at - 1] == "{" else -1
    parts.append(text[start:].strip())
    return parts


def _values(parts: Sequence[str]) -> list[Value] | None:
    """Parse all parts; None if one of them is not understood."""
    found = [_value(part) for part in parts]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def _list(parts: Sequence[str]) -> Value | None:
    items = _values(parts) if all(parts) else None
    if items is None:
        return None
    found = _carry_names(items)
    sets = [_as_set(item) for item in found]
    if all(sets) and any(isinstance(item, RealSet | Relation) for item in found):
        return realsets.both([each for each in sets if each is not None])
    return Items("", "", tuple(_flat(found)))


def _flat(items: Sequence[Value]) -> list[Value]:
    r"""Return the items with those of lists without a bracket, such as \pm 1, in their place."""
    flat: list[Value] = []
    for item in items:
        flat += item.items if isinstance(item, Items) and not item.opening else [item]
    return flat


def _carry_names(items: Sequence[Value]) -> list[Value]:
    """Give the name of "x = 1, 2" to each of the values."""
    first = items[0]
    plain = all(isinstance(item, Quantity) for item in items[1:])
    if isinstance(first, Named) and plain and isinstance(first.value, Quantity):
        rest = [Named(first.name, item) for item in items[1:] if isinstance(item, Quantity)]
        return [first, *rest]
    return list(items)


def _options(parts: Sequence[str]) -> Value | None:
    """Parse alternatives: a union if they are inequalities or intervals, else a list."""
    items = _values(parts)
    if items is None:
        return None
    found = _carry_names(items)
    sets = [_as_set(item) for item in found]
    if all(sets) and any(isinstance(item, RealSet | Relation | Items) for item in found):
        return realsets.union([each for each in sets if each is not None])
    flat = _flat(found)
    if all(_same_constant(flat[0], item) for item in flat[1:]):
        return flat[0]  # 7/2 or 3.5
    return Items("", "", tuple(flat))


def _union(parts: Sequence[str]) -> Value | None:
    items = [_value(part) for part in parts]
    sets = [_as_set(item) for item in items if item is not None]
    found = [each for each in sets if each is not None]
    return realsets.union(found) if len(found) == len(parts) else None


def _ratio(parts: Sequence[str]) -> Value | None:
    items = _values(parts)
    return None if items is None else Items(":", ":", tuple(items))


def _difference(parts: Sequence[str]) -> Value | None:
    r"""Parse \mathbb{R} \setminus \{1\}."""
    sets = [_as_set(_value(part)) for part in parts]
    if len(sets) != 2 or sets[0] is None or sets[1] is None:
        return None
    return realsets.without(sets[0], sets[1])


def _bracketed(text: str) -> Value | None:
    r"""Parse (a, b), [a, b), {a, b}, {x | x > 3} and \langle a, b \rangle."""
    for opening, closing in (("\\{", "\\}"), ("\\langle", "\\rangle"), ("\\lbrace", "\\rbrace")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)].strip()
            if not _balanced(inner):
                return None
            if "angle" in opening:
                return _items("(", ")", inner)
            return _builder(inner) or _items("{", "}", inner)
    if text[0] not in "([" or text[-1] not in ")]" or _closing(text, 0) != len(text) - 1:
        return None
    inner = text[1:-1].strip()
    if len(_split(inner, re.compile("[,;]"))) < 2:
        if _balanced(inner) and re.match(r"\(.*\)$", text) and _RELATION.search(inner):
            return _value(inner)
        return None
    return _items(text[0], text[-1], inner)


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def _items(opening: str, closing: str, inner: str) -> Items | None:
    items = _values(_split(inner, re.compile("[,;]")))
    if items is None:
        return None
    flat: list[Value] = []
    for item in _carry_names(items):
        is_list = isinstance(item, Items) and not item.opening and opening == "{"
        flat += item.items if is_list else [item]  # type: ignore[union-attr]
    return Items(opening, closing, tuple(flat))


def _builder(inner: str) -> Value | None:
    """Parse the condition of {x | condition}."""
    parts = _split(inner, _BUILDER, keep=True)
    if len(parts) < 3 or not re.fullmatch(r"\\?[a-zA-Z]+(?:\s*\\in\s*\S.*)?", parts[0]):
        return None
    variable = _RELATION.split(parts[0])[0].strip()
    condition = _value("".join(parts[2:]))
    as_set = _as_set(condition) if condition is not None else None
    if as_set is None or as_set.variable not in ("", variable.lstrip("\\")):
        return None
    return as_set


def _grid(kind: str, body: str) -> Grid | None:
    body = re.sub(r"\\hline", "", body).strip()
    rows = []
    for line in re.split(r"\\\\(?:\[[^\]]*\])?", body):
        if not line.strip():
            continue
        cells = line.split("&")
        if kind == "cases":
            cells = [_CONDITION.sub("", cell.strip()).rstrip(" ,.") for cell in cells]
        values = _values([cell.strip() for cell in cells])
        if values is None:
            return None
        rows.append(tuple(values))
    names = {"cases": "cases", "vmatrix": "determinant"}
    return Grid(names.get(kind, "matrix"), tuple(rows)) if rows else None


def _relation_value(parts: Sequence[str]) -> Value | None:
    """Parse sides and operators: a named value, an interval, or any other relation."""
    approximated = _approximated(parts)
    if approximated:
        return approximated
    texts, operators = parts[::2], tuple(_OPERATORS[part] for part in parts[1::2])
    if set(operators) == {"="}:
        if texts[0] and _NAME.fullmatch(texts[0]):
            value = _value(texts[-1])
            if len(texts) > 2 and not all(map(_value, texts[1:])):
                return None
            return _named(texts[0], value)
        if _NAME.fullmatch(texts[-1]) and len(texts) == 2:
            value = _value(texts[0])
            if isinstance(value, Quantity) and not formulas.symbols(value.node):
                return _named(texts[-1], value)
    if operators == ("in",):
        value = _value(texts[1])
        return _named(texts[0], value) if _NAME.fullmatch(texts[0]) else None
    sides = _values(texts)
    if sides is None or "in" in operators or "equiv" in operators:
        return None
    if set(operators) == {"="} and all(_same_constant(sides[-1], side) for side in sides):
        return sides[-1]  # 2 + 3 = 5
    relation = Relation(tuple(sides), operators)
    return realsets.from_relation(*_nodes(relation)) or relation


def _named(name: str, value: Value | None) -> Named | None:
    if value is None:
        return None
    plain = re.sub(r"\\(?:text|mathrm|operatorname|left|right)(?![a-zA-Z])|[\s{}\\]", "", name)
    while isinstance(value, Named):
        value = value.value
    return Named(plain, value)


def _approximated(parts: Sequence[str]) -> Value | None:
    """Parse a constant with the decimal that it rounds to behind it."""
    if parts[-2] not in _APPROXIMATE:
        return None
    exact = _value(parts[0]) if len(parts) == 3 else _relation_value(parts[:-2])
    rounded = _value(parts[-1])
    return (
        Approximated(exact, rounded) if exact and rounded and _rounds_to(exact, rounded) else None
    )


def _same_constant(one: Value, other: Value) -> bool:
    """Return whether two values are the same number, without symbols."""
    if not isinstance(one, Quantity) or not isinstance(other, Quantity):
        return False
    constant = not (formulas.symbols(one.node) or formulas.symbols(other.node))
    return constant and quantities.equal(one, other)


def _rounds_to(exact: Value, rounded: Value) -> bool:
    """Return whether a decimal is a constant, rounded or cut off to the places it has."""
    while isinstance(exact, Named):
        exact = exact.value
    if not isinstance(exact, Quantity) or not isinstance(rounded, Quantity) or not rounded.literal:
        return False
    value = evaluation.constant(exact.node)
    unit = Fraction(10) ** -(rounded.literal.places or 0)
    if not isinstance(value, Fraction) or value * rounded.literal.value < 0:
        return False
    return -unit / 2 <= abs(value) - abs(rounded.literal.value) < unit


def _nodes(relation: Relation) -> tuple[tuple[Node, ...], tuple[str, ...]]:
    nodes = [side.node for side in relation.sides if isinstance(side, Quantity)]
    return (tuple(nodes), relation.operators) if len(nodes) == len(relation.sides) else ((), ())


# Comparison


def _without_names(answer: Value, gold: Value) -> tuple[Value, Value]:
    """Drop a name that only one of the values has, and brackets around one value."""
    answer, gold = _single(answer), _single(gold)
    if isinstance(answer, Named) and isinstance(gold, Named):
        if _same_name(answer.name, gold.name) or _is_tuple(answer.name) or _is_tuple(gold.name):
            return _single(answer.value), _single(gold.value)
        return answer, gold
    if isinstance(answer, Named) and not _is_equation(gold):
        return _without_names(answer.value, gold)
    if isinstance(gold, Named) and not _is_equation(answer):
        return _without_names(answer, gold.value)
    return answer, gold


def _same_name(one: str, other: str) -> bool:
    """Return whether two names are the same; y and f(x) are."""
    functions = {re.sub(r"^[a-zA-Z]\(x\)$", "y", name) for name in (one, other)}
    return len(functions) == 1


def _is_tuple(name: str) -> bool:
    return name.startswith("(")


def _single(value: Value) -> Value:
    while isinstance(value, Items) and len(value.items) == 1 and value.opening in ("", "{"):
        value = value.items[0]
    return value


def _is_relation(value: Value) -> bool:
    return isinstance(value, Relation | Named)


def _is_equation(value: Value) -> bool:
    return isinstance(value, Relation)


def _relation(value: Value) -> Relation:
    if isinstance(value, Named):
        name = quantities.parse(value.name, False)
        symbol = name or Quantity(Node("symbol", value=value.name))
        return Relation((symbol, value.value), ("=",))
    assert isinstance(value, Relation)
    return value


def _as_set(value: Value | None) -> RealSet | None:
    if isinstance(value, RealSet):
        return value
    if isinstance(value, Named) and isinstance(value.value, RealSet | Items):
        return _as_set(value.value)
    if isinstance(value, Items) and value.items and not value.opening:
        sets = [_as_set(item) for item in value.items if isinstance(item, Items)]
        found = [each for each in sets if each is not None]
        return realsets.union(found) if len(found) == len(value.items) else None
    if isinstance(value, Items) and all(isinstance(item, Quantity) for item in value.items):
        nodes = [item.node for item in value.items if isinstance(item, Quantity)]
        if value.opening == "{":
            return realsets.points(nodes)
        if value.opening and len(nodes) == 2:
            low, high = nodes
            return realsets.interval(low, high, value.opening == "(", value.closing == ")")
    return None


def _relations_equal(answer: Relation, gold: Relation) -> bool:
    """Return whether two relations of two sides each have proportional differences."""
    (left, one), (right, other) = _nodes(answer), _nodes(gold)
    if len(left) != len(right) or not left:
        return False
    if len(left) > 2 or not any(map(formulas.symbols, left + right)):
        flipped = tuple(FLIPPED[operator] for operator in reversed(one))
        return any(
            operators == other and all(map(evaluation.same, sides, right))
            for sides, operators in ((left, one), (left[::-1], flipped))
        )
    differences = [Node("add", (a, Node("neg", (b,)))) for a, b in (left, right)]
    sign = evaluation.proportional(*differences)
    operator = one[0] if sign > 0 else FLIPPED[one[0]]
    return bool(sign) and operator == other[0]


def _items_equal(answer: Value, gold: Value) -> bool:
    answer, gold = _as_row(answer, gold), _as_row(gold, answer)
    if not isinstance(answer, Items) or not isinstance(gold, Items):
        return False
    if len(answer.items) != len(gold.items):
        return False
    brackets = {f"{each.opening}{each.closing}" for each in (answer, gold)}
    named = [all(isinstance(item, Named) for item in each.items) for each in (answer, gold)]
    if any(named) and not all(named):
        names = [
            item.name
            for each in (answer, gold)
            for item in each.items  # one has names
            if isinstance(item, Named)
        ]
        is_series = len({re.sub(r"_\d+$", "", name) for name in names}) == 1  # x_1, x_2
        if len(set(names)) == len(answer.items) and not is_series:
            return _all_equal(answer.items, gold.items)
    if brackets <= {"", "{}"}:
        return _same_in_any_order(answer.items, gold.items)
    if len(brackets) > 1 and not (brackets <= {"()", "[]"} and len(gold.items) != 2):
        return False
    return _all_equal(answer.items, gold.items)


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


def _all_equal(answer: Sequence[Any], gold: Sequence[Any]) -> bool:
    if len(answer) != len(gold):
        return False
    return all(
        _all_equal(a, g) if isinstance(a, tuple) else equal(a, g)
        for a, g in zip(answer, gold, strict=True)
    )


def _same_in_any_order(answer: Sequence[Value], gold: Sequence[Value]) -> bool:
    left = list(answer)
    for item in gold:
        found = next((each for each in left if equal(each, item)), None)
        if found is None:
            return False
        left.remove(found)
    return True


_SIGNS: Sequence[tuple[re.Pattern[str], bool, Callable[[list[str]], Value | None]]] = (
    (re.compile(r"\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])"), False, _options),
    (re.compile(r"[,;]"), False, _list),
    (_RELATION, True, _relation_value),
    (re.compile(":"), False, _ratio),
    (re.compile(r"\\cup(?![a-zA-Z])"), False, _union),
    (
        re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|(?<=[}\s])-\s*(?=\\\{)"),
        False,
        _difference,
    ),
)
_KNOWN_SETS: dict[str, Value] = {
    **dict.fromkeys((r"\mathbb{R}", r"\mathbb R", r"\mathbf{R}", r"\Bbb{R}", r"\R"), realsets.LINE),
    **dict.fromkeys(("all real numbers", "all reals", "all real values"), realsets.LINE),
    **dict.fromkeys((r"\emptyset", r"\varnothing", r"\{\}", r"\{ \}"), Items("{", "}", ())),
    **dict.fromkeys(("no solution", "no solutions", "empty set"), Items("{", "}", ())),
}
