r"""A parser of answers: lists, tuples, intervals, sets, equations, matrices and named values.

`parse` reads all of a normalized answer or returns None. It splits the answer by the loosest sign
outside of all brackets, and parses the parts; a part without such a sign is a formula with its unit
(`evals.grading.quantities`). The rules, each with an example, are in docs/reference/grading.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from evals.grading import brackets, evaluation, formulas, quantities, realsets
from evals.grading.brackets import split_outside
from evals.grading.quantities import Quantity
from evals.grading.realsets import RealSet
from evals.grading.values import (
    Approximated,
    Grid,
    Items,
    Named,
    Relation,
    Value,
    as_set,
    as_sets,
)

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
_NAME = re.compile(  # of a value, on one side of "="
    r"\\[Dd]elta\s*\\?[a-zA-Z]+"  # \Delta x
    r"|(?:m?\\(?:angle|triangle|measuredangle|overline|text|mathrm|operatorname|mathbf|vec)\s*)?"
    r"(?:\{[A-Za-z .]+\}|\\?[A-Za-z]+'*)(?:\s*_(?:\w|\{[^{}]*\}|\\[a-z]+))?'*"  # x, \angle ABC, v_0
    r"(?:\^\{-1\})?(?:\s*\((?:[\\A-Za-z0-9_, ]|\\theta|-\d|[a-z]\([^()]*\))+\))?"  # f^{-1}(x)
    r"|(?:P|Pr|\\Pr|\\mathbb\{P\})\s*\([^()]*\)"  # P(X = 2)
    r"|\\(?:sin|cos|tan|cot|sec|csc)\s*\(?(?:\\angle\s*)?"  # \cos A, but not \cos x
    r"(?:[A-Z]+|\\(?:theta|alpha|beta|gamma|phi))\)?"
    r"|\|[A-Z]{2}\|"  # |AB|
    r"|\\frac\{d.{1,12}\}\{d.{1,12}\}"
    r"|\(\s*[a-z](?:\s*,\s*[a-z])+\s*\)"  # (x, y)
    r"|\\(?:dot|ddot|bar|hat)\s*\{[a-zA-Z]\}"
    r"|[A-Z]\s*\\cup\s*[A-Z]|[A-Z]\s*\\cap\s*[A-Z]"  # events
)
_MATRIX = re.compile(
    r"\\begin\{(?P<kind>[pbBv]?(?:small)?matrix|array|cases)\*?\}(?:\{[lcr|]+\})?(?P<body>.*)"
    r"\\end\{(?P=kind)\*?\}"
)
_CONDITION = re.compile(  # the word before the condition of a case
    r"^(?:\\text\s*\{\s*)?(?:if|for|when|where)\b\s*\}?\s*"
)
_ALIGNED = re.compile(r"\\begin\{(aligned|align|gathered|cases)\*?\}(.*)\\end\{\1\*?\}")
_COMMA = re.compile("[,;]")
_LINE_END = re.compile(r"\\\\(?:\[[^\]]*\])?|\\cr(?![a-zA-Z])")
_LEADING_SIGN = re.compile(r"^(?:\\approx|\\simeq|\\sim|\\therefore|=)\s*")
_BRACKETED_ARRAY = re.compile(
    r"^[(\[]\s*(\\begin\{(array|(?:small)?matrix)\}.*\\end\{\2\})\s*[)\]]$"
)
_BRACED_ARRAY = re.compile(r"^\\(?:\{|lbrace)\s*\\begin\{array\}(?:\{[lcr]+\})?(.*)\\end\{array\}$")
_SCALED_MATRIX = re.compile(
    r"(?P<factor>[^=]*?)\s*(?:\\cdot|\\times|\*)?\s*(?P<matrix>\\begin\{[pb]?(?:small)?matrix\}.*)"
)
_INTERVAL = re.compile(r"([\[\](])(\s*[^\[\]();,]+[;,][^\[\]();,]+)([\[\])])")
_INTERVALS = re.compile(
    rf"(?:[a-zA-Z]\s*\\in\s*)?{_INTERVAL.pattern}(?:\s*\\cup\s*{_INTERVAL.pattern})*"
)
_BUILDER = re.compile(  # the bar in {x | x > 3}
    r"\\mid(?![a-zA-Z])|\||:(?!=)"
)


@lru_cache(4096)
def parse(text: str, leading_words: bool = False) -> Value | None:
    """Return the value of a normalized answer; None if not all of it is understood.

    Args:
        text: normalized text.
        leading_words: whether words may stand before a number, as in an answer in a sentence.
    """
    try:
        return _value(text.strip(), leading_words)
    except RecursionError:
        return None


def _value(text: str, leading_words: bool = False) -> Value | None:
    """Parse by the loosest sign in the text: or, comma, relation, colon, union, bracket."""
    text = brackets.without_outer_braces(_LEADING_SIGN.sub("", text))
    if not text:
        return None
    text = _BRACKETED_ARRAY.sub(r"\1", text)
    text = _BRACED_ARRAY.sub(r"\\begin{cases}\1\\end{cases}", text)
    if _INTERVALS.fullmatch(text):
        text = _INTERVAL.sub(_with_round_brackets, text)
    lines = _aligned_lines(text)
    if lines:
        return _list(lines)
    matrix = _MATRIX.fullmatch(text)
    if matrix and text.count("\\begin") == 1:
        return _grid(matrix["kind"], matrix["body"])
    for sign in _SIGNS:
        parts = split_outside(text, sign.pattern, sign.is_part)
        if len(parts) > 1:
            return sign.parse_parts(parts)
    return (
        _KNOWN_SETS.get(text)
        or _KNOWN_SETS.get(text.lower())
        or _bracketed(text)
        or _scaled_matrix(text)
        or _quantity(text, leading_words)
    )


def _values(parts: Sequence[str]) -> list[Value] | None:
    """Parse all parts; None if one of them is not understood."""
    values = [value for value in map(_value, parts) if value is not None]
    return values if len(values) == len(parts) else None


def _quantity(text: str, leading_words: bool) -> Value | None:
    r"""Parse a formula with or without a unit; one with \pm is a list of two."""
    quantity = quantities.parse(text, leading_words)
    if quantity is None:
        return None
    node = quantity.node
    if formulas.contains(node, "pm") or formulas.contains(node, "mp"):
        both = [Quantity(formulas.choose_signs(node, plus)) for plus in (True, False)]
        return Items("", "", tuple(both))
    return quantity


# Lists and alternatives


def _list(parts: Sequence[str]) -> Value | None:
    """Parse a list: the intersection of sets if there are inequalities, else of any values.

    Inequalities of several variables remain a list.
    """
    items = _listed_values(parts)
    if items is None:
        return None
    sets = as_sets(items)
    if sets and any(isinstance(item, RealSet) for item in items):
        return realsets.both(sets) or Items("", "", tuple(sets))
    return Items("", "", tuple(_flat(items)))


def _conjunction(parts: Sequence[str]) -> Value | None:
    """Parse the conjunction of inequalities or named values; that of other things is a text."""
    values = _values(parts) or []
    return _list(parts) if values and all(isinstance(v, RealSet | Named) for v in values) else None


def _alternatives(parts: Sequence[str]) -> Value | None:
    """Parse alternatives: a union if they are inequalities or intervals, else a list."""
    items = _listed_values(parts)
    if items is None:
        return None
    sets = as_sets(items)
    if sets and any(isinstance(item, RealSet | Items) for item in items):
        return realsets.union(sets)
    flat = _flat(items)
    if all(_same_constant(flat[0], item) for item in flat[1:]):
        return flat[0]  # 7/2 or 3.5
    return Items("", "", tuple(flat))


def _listed_values(parts: Sequence[str]) -> list[Value] | None:
    """Parse all parts; the name in "x = 1, 2" is that of each value."""
    items = _values(parts)
    if items is None:
        return None
    first, *others = items
    rest = [item for item in others if isinstance(item, Quantity)]
    if isinstance(first, Named) and isinstance(first.value, Quantity) and len(rest) == len(others):
        return [first, *(Named(first.name, item) for item in rest)]
    return items


def _flat(items: Sequence[Value]) -> list[Value]:
    r"""Return the items with those of lists without a bracket, such as \pm 1, in their place."""
    flat: list[Value] = []
    for item in items:
        flat += item.items if isinstance(item, Items) and not item.opening else [item]
    return flat


def _ratio(parts: Sequence[str]) -> Value | None:
    items = _values(parts)
    return None if items is None else Items(":", ":", tuple(items))


# Sets and brackets


def _sets(parts: Sequence[str]) -> list[RealSet] | None:
    values = _values(parts)
    return None if values is None else as_sets(values)


def _union(parts: Sequence[str]) -> Value | None:
    sets = _sets(parts)
    return None if sets is None else realsets.union(sets)


def _difference(parts: Sequence[str]) -> Value | None:
    r"""Parse \mathbb{R} \setminus \{1\}."""
    sets = _sets(parts)
    return realsets.without(*sets) if sets and len(sets) == 2 else None


def _bracketed(text: str) -> Value | None:
    r"""Parse (a, b), [a, b), {a, b}, {x | x > 3} and \langle a, b \rangle."""
    for opening, closing in (("\\{", "\\}"), ("\\langle", "\\rangle"), ("\\lbrace", "\\rbrace")):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)].strip()
            if not brackets.are_balanced(inner):
                return None
            if opening == "\\langle":
                return _items("(", ")", inner)
            return _builder(inner) or _items("{", "}", inner)
    if text[0] not in "([" or text[-1] not in ")]" or not brackets.are_around_all(text):
        return None
    inner = text[1:-1].strip()
    if len(split_outside(inner, _COMMA)) > 1:
        return _items(text[0], text[-1], inner)
    is_relation = text[0] + text[-1] == "()" and _RELATION.search(inner)
    return _value(inner) if is_relation and brackets.are_balanced(inner) else None


def _items(opening: str, closing: str, inner: str) -> Items | None:
    items = _listed_values(split_outside(inner, _COMMA))
    if items is None:
        return None
    return Items(opening, closing, tuple(_flat(items) if opening == "{" else items))


def _with_round_brackets(interval: re.Match[str]) -> str:
    """Write ]1, 2[ as (1, 2)."""
    opening, inside, closing = interval.groups()
    return f"{opening.replace(']', '(')}{inside}{closing.replace('[', ')')}"


def _builder(inner: str) -> Value | None:
    """Parse the inside of {x | condition}."""
    parts = split_outside(inner, _BUILDER, keep=True)
    if len(parts) < 3 or not re.fullmatch(r"\\?[a-zA-Z]+(?:\s*\\in\s*\S.*)?", parts[0]):
        return None
    variable = _RELATION.split(parts[0])[0].strip()
    found = as_set(_value("".join(parts[2:])))
    return found if found and found.variable in ("", variable.lstrip("\\")) else None


# Lines


def _aligned_lines(text: str) -> list[str] | None:
    """Return the lines of aligned equations; a line that starts with a sign continues one."""
    found = _ALIGNED.fullmatch(text)
    if not found or (found[1] == "cases" and "&" in found[2]):
        return None
    lines: list[str] = []
    for line in _LINE_END.split(found[2].replace("&", "")):
        if lines and _RELATION.match(line.strip()):
            lines[-1] += line
        elif line.strip():
            lines.append(line.strip(" ,."))
    return lines


def _grid(kind: str, body: str) -> Grid | None:
    """Parse the inside of a matrix or of a definition by cases."""
    rows = []
    for line in _LINE_END.split(re.sub(r"\\hline", "", body).strip()):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("&")]
        if kind == "cases":
            cells = [_CONDITION.sub("", cell).rstrip(" ,.") for cell in cells]
        values = _values(cells)
        if values is None:
            return None
        rows.append(tuple(values))
    names = {"cases": "cases", "vmatrix": "determinant"}
    return Grid(names.get(kind, "matrix"), tuple(rows)) if rows else None


def _scaled_matrix(text: str) -> Grid | None:
    """Parse a matrix of formulas with a factor before it."""
    found = _SCALED_MATRIX.fullmatch(text)
    grid = _value(found["matrix"]) if found and found["factor"] else None
    if found is None or not isinstance(grid, Grid):
        return None
    sign_or_factor = "-1" if found["factor"] == "-" else found["factor"]
    factor = quantities.parse(sign_or_factor, False)
    rows = [[cell for cell in row if isinstance(cell, Quantity)] for row in grid.rows]
    if factor is None or any(len(row) < len(grid.rows[0]) for row in rows):
        return None
    scaled = ((formulas.Node("mul", (factor.node, cell.node)) for cell in row) for row in rows)
    return Grid(grid.kind, tuple(tuple(map(Quantity, row)) for row in scaled))


# Relations


def _relation(parts: Sequence[str]) -> Value | None:
    """Parse sides and operators: a named value, an interval, or any other relation."""
    approximated = _approximated(parts)
    if approximated:
        return approximated
    texts, operators = parts[::2], tuple(_OPERATORS[part] for part in parts[1::2])
    if set(operators) == {"="}:
        if texts[0] and _NAME.fullmatch(texts[0]):
            value = _value(texts[-1])
            return None if len(texts) > 2 and not _values(texts[1:]) else _named(texts[0], value)
        if _NAME.fullmatch(texts[-1]) and len(texts) == 2:
            value = _value(texts[0])
            if isinstance(value, Quantity) and not formulas.symbols(value.node):
                return _named(texts[-1], value)
    if operators == ("in",):
        return _named(texts[0], _value(texts[1])) if _NAME.fullmatch(texts[0]) else None
    sides = _values(texts)
    if sides is None or "in" in operators or "equiv" in operators:
        return None
    if set(operators) == {"="} and all(_same_constant(sides[-1], side) for side in sides):
        return sides[-1]  # 2 + 3 = 5
    relation = Relation(tuple(sides), operators)
    return realsets.from_relation(relation.formulas, operators) or relation


def _named(name: str, value: Value | None) -> Named | None:
    """Return a value with its name as one writes it without LaTeX."""
    plain = re.sub(r"\\(?:text|mathrm|operatorname|left|right)(?![a-zA-Z])|[\s{}\\]", "", name)
    value = _without_names(value)
    return None if value is None else Named(plain, value)


def _without_names(value: Value | None) -> Value | None:
    while isinstance(value, Named):
        value = value.value
    return value


def _approximated(parts: Sequence[str]) -> Value | None:
    """Parse a constant with the decimal that it rounds to behind it."""
    if parts[-2] not in ("\\approx", "\\cong"):
        return None
    exact = _value(parts[0]) if len(parts) == 3 else _relation(parts[:-2])
    rounded = _value(parts[-1])
    if exact and rounded and _rounds_to(exact, rounded):
        return Approximated(exact, rounded)
    return None


def _rounds_to(exact: Value, rounded: Value) -> bool:
    """Return whether a decimal is a constant, rounded or cut off to the places it has."""
    constant = _without_names(exact)
    if not isinstance(constant, Quantity) or not isinstance(rounded, Quantity):
        return False
    value, literal = evaluation.constant(constant.node), rounded.literal
    if not literal or not isinstance(value, Fraction) or value * literal.value < 0:
        return False
    unit = Fraction(10) ** -(literal.places or 0)
    return -unit / 2 <= abs(value) - abs(literal.value) < unit


def _same_constant(one: Value, other: Value) -> bool:
    """Return whether two values are the same number, without symbols."""
    if not isinstance(one, Quantity) or not isinstance(other, Quantity):
        return False
    constant = not (formulas.symbols(one.node) or formulas.symbols(other.node))
    return constant and quantities.equal(one, other)


@dataclass(frozen=True)
class _Sign:
    """A sign that may stand between the parts of a value.

    Attributes:
        pattern: the sign.
        parse_parts: parses the value from its parts.
        is_part: whether the signs themselves are among the parts.
    """

    pattern: re.Pattern[str]
    parse_parts: Callable[[Sequence[str]], Value | None]
    is_part: bool = False


_SIGNS = (  # the loosest first
    _Sign(re.compile(r"\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])"), _alternatives),
    _Sign(_COMMA, _list),
    _Sign(re.compile(r"\\land(?![a-zA-Z])"), _conjunction),
    _Sign(_RELATION, _relation, is_part=True),
    _Sign(re.compile(":"), _ratio),
    _Sign(re.compile(r"\\cup(?![a-zA-Z])"), _union),
    _Sign(re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|(?<=[}\s])-\s*(?=\\\{)"), _difference),
)
_NO_SOLUTION = (
    *("no solution", "no solutions", "no real solution", "no real solutions", "empty set"),
    *("there is no solution", "there are no solutions", "there are no real solutions"),
)
_KNOWN_SETS: dict[str, Value] = {
    **dict.fromkeys((r"\mathbb{R}", r"\mathbb R", r"\mathbf{R}", r"\Bbb{R}", r"\R"), realsets.LINE),
    **dict.fromkeys(("all real numbers", "all reals", "all real values"), realsets.LINE),
    **dict.fromkeys((r"\emptyset", r"\varnothing", r"\{\}", r"\{ \}"), Items("{", "}", ())),
    **dict.fromkeys(_NO_SOLUTION, Items("{", "}", ())),
}
