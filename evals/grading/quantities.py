"""Numbers and formulas with their units, and the rule by which two of them are equal."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from evals.grading import evaluation, formula_parser, formulas, notation, units, vocabulary
from evals.grading.formulas import Node
from evals.grading.notation import Number

_TEXT = (
    r"\\(?:text|mbox|textbf|textrm|textit|mathrm|mathbf|rm|operatorname|texttt)\s*"
    r"\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_CIRCLE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$")
_UNIT_END = re.compile(
    rf"(?:(?:{_TEXT}|(?<![\w\\^_{{])[A-Za-z]{{2,}}\.?){_POWER}|(?<=[\d\s])[A-Za-z]+/[A-Za-z]+{_POWER}"
    r"|\^\s*\{?\s*\\circ\s*\}?)\s*(?:[CF]\s*)?$"
)
_LITERAL = r"[+-]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_WORDS_AROUND = re.compile(
    rf"(?P<before>(?:[A-Za-z][A-Za-z'\u2019-]*[:,.]?\s+)*)(?P<sign>-?)\s*(?P<symbol>(?:US)?\\?\$|[€¥₹£])?\s*"
    rf"(?P<number>{_LITERAL}(?:\s*/\s*\d+|\s+\d+/\d+)?|[+-]?\d*\\frac\{{\d+\}}\{{\d+\}})"
    r"(?P<gap>\s*)(?P<percent>\\?%)?(?P<after>[A-Za-z\d\s'\u2019./^,-]*)"
)
_WORD = re.compile(r"[/.]*[A-Za-z][A-Za-z'\u2019./^]*-?[\d]?[,.]?")
_TERM = re.compile(
    rf"\s-\s|-\s*\d|(?<![\w.'\u2019^])(?![a{''.join(sorted(vocabulary.UNIT_LETTERS))}])[A-Za-z]"
    r"(?![\w.'\u2019/^])"
)
_SPACED_UNIT = re.compile(
    r"(?P<body>.*[\d)}\]i])(?:\s+(?P<unit>(?:[A-Za-z]|\\(?:mu|Omega))[A-Za-z\d\s^{}/.*()\\-]*|\\frac.*)"
    r"|\s*(?P<ratio>\\frac\s*\{\s*[A-Za-z]{2,}\s*\}\s*\{\s*[A-Za-z]+\s*\}))"
)
_CIRCLE_UNIT = re.compile(r"\\circ\s*\}?\s*[CF]$")
_DEGREE, _RADIAN = units.parse("degree"), units.parse("radian")
_COMPOUND = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?,?(?:\s+and)?")
_SMALL_WORDS = frozenset(["of", "to", "is", "in", "at", "by", "on", "as", "more"])
_RATE = re.compile(r"[+-]?[\d.]+\s+([A-Za-z]+)\s*/\s*([A-Za-z]+)(?:\^\{?\d\}?|\d)?")


@dataclass(frozen=True)
class Quantity:
    """A formula, usually a number, with what is written around it.

    Attributes:
        node: the formula.
        literal: the formula as a number, if it is written as one.
        unit: its unit, if that is known.
        words: words around it that have an opposite ("north").
        compound: whether it is a sum of several numbers with units ("3 h 5 min").
        measured: if it is a product that ends with letters after a space, such as "300 K", the
            quantity with these as its unit.
    """

    node: Node
    literal: Number | None = None
    unit: units.Unit | None = None
    words: frozenset[str] = frozenset()
    compound: bool = False
    measured: "Quantity | None" = None


@lru_cache(4096)
def parse(text: str, leading_words: bool) -> Quantity | None:
    """Parse a formula with or without a unit; None if not all of the text is understood.

    Args:
        text: normalized text.
        leading_words: whether words may stand before the number, as in an answer in a sentence.
    """
    text = text.strip()
    flat = re.sub(_TEXT, r" \1 ", text).replace("~", " ").strip()
    around = None
    if re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}|\\\$|[€¥₹£]", flat):
        around = _in_words(flat, leading_words) or _spelled_out(flat, leading_words)
    rate = _RATE.fullmatch(flat)
    if rate and units.find(rate[1]) and units.find(rate[2]):
        around = _with_unit(flat)
    quantity = _quantity(text)
    if quantity and not quantity.literal and not around:
        quantity = replace(quantity, measured=_with_spaced_unit(flat))
    return around or quantity or _with_spaced_unit(flat) or _with_unit(text) or _compound(flat)


def equal(answer: Quantity, gold: Quantity) -> bool:
    """Return whether two quantities are equal.

    Units that both have are compared, and converted (500 cm is 5 m). A unit that only one has is
    ignored, except in a sum of units. Numbers in decimal notation may be rounded: see
    `notation.Number.equals`.
    """
    answer, gold = _measured(answer, gold)
    answer, gold = _in_radians(answer, gold), _in_radians(gold, answer)
    if answer.words and gold.words and answer.words != gold.words:
        return False
    percents = [bool(each.literal and each.literal.percent) for each in (answer, gold)]
    if (percents[0] and gold.unit) or (percents[1] and answer.unit):
        return False
    scale = Fraction(1)
    if answer.unit and gold.unit:
        if answer.unit.powers != gold.unit.powers:
            return False
        scale = answer.unit.factor / gold.unit.factor
    elif answer.compound or gold.compound:
        return False
    if scale == 1:
        if answer.literal and gold.literal:
            return answer.literal.equals(gold.literal)
        if _rounded(answer, gold) or evaluation.same(answer.node, gold.node):
            return True
        hundredth = Node("div", (gold.node, formulas.rational(100)))
        return percents[1] and evaluation.same(answer.node, hundredth)  # 7/40 for 17.5%
    if answer.literal and gold.literal:
        return answer.literal.times(scale).equals(gold.literal)
    return evaluation.same(Node("mul", (formulas.rational(scale), answer.node)), gold.node)


def _measured(answer: Quantity, gold: Quantity) -> tuple[Quantity, Quantity]:
    """Read letters after a space as units if the other quantity does not have them as symbols."""
    if answer.measured and gold.measured and answer.node != gold.node:
        return answer.measured, gold.measured
    answer = _as_measured(answer, gold)
    return answer, _as_measured(gold, answer) if answer.unit else gold


def _as_measured(quantity: Quantity, other: Quantity) -> Quantity:
    """Return the reading with a unit if it has the symbols of the other quantity."""
    names, measured = formulas.symbols(other.node), quantity.measured
    if measured and names != formulas.symbols(quantity.node):
        return measured if names == formulas.symbols(measured.node) else quantity
    return quantity


def _in_radians(quantity: Quantity, other: Quantity) -> Quantity:
    r"""Return degrees in radians if the other quantity is a part of \pi."""
    if quantity.unit != _DEGREE or other.unit not in (None, _RADIAN) or not _has_pi(other.node):
        return quantity
    return Quantity(Node("degrees", (quantity.node,)), unit=other.unit)


def _has_pi(node: Node) -> bool:
    return node.value == "pi" or any(map(_has_pi, node.args))


def _rounded(answer: Quantity, gold: Quantity) -> bool:
    """Return whether one is a decimal number and the other an exact value that rounds to it."""
    for literal, other in ((answer.literal, gold), (gold.literal, answer)):
        if literal and literal.places is not None and not other.literal:
            value = evaluation.constant(other.node)
            if isinstance(value, Fraction):
                return literal.rounds(value)
    return False


def _quantity(text: str) -> Quantity | None:
    """Return the quantity of a text that is one formula."""
    literal = notation.parse_number(notation.compact(text))
    if literal:
        return _of_number(literal)
    node = formula_parser.parse(text)
    if node is None:
        return None
    if formulas.contains(node, "degrees") and not formulas.contains(node, "call"):
        bare = formulas.without_degrees(node)
        literal = notation.parse_number(notation.compact(_CIRCLE.sub("", text)))
        return Quantity(bare, literal, _DEGREE)
    return Quantity(node)


def _of_number(literal: Number) -> Quantity:
    return Quantity(formulas.rational(literal.value), literal)


def _with_unit(text: str) -> Quantity | None:
    r"""Parse a formula with a unit behind it: "2\pi \text{ cm}", "5 cm", "30^\circ"."""
    body, unit_text, is_text = text, "", False
    while found := _UNIT_END.search(body):
        if not body[: found.start()].strip():
            break
        piece = found.group()
        is_text |= "{" in piece or "\\circ" in piece
        piece = re.sub(_TEXT, r"\1", piece)
        piece = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", " degree ", piece)
        body, unit_text = body[: found.start()].rstrip(" ~"), f"{piece} {unit_text}"
        joined = re.search(r"(?:/|\\cdot|\\times)\s*$", body)
        if joined:
            body = body[: joined.start()].rstrip()
            unit_text = f"{'/' if '/' in joined.group() else ' '}{unit_text}"
    single = re.fullmatch(r"(.*[\d}]) ([A-Za-z])", body)
    if not unit_text and single and single.group(2) in vocabulary.UNIT_LETTERS:
        body, unit_text = single.groups()
    if not unit_text:
        return None
    unit_text = re.sub(r"degree\s+([CF])\b", r"\1", unit_text.replace("~", " "))
    quantity = _quantity(body)
    if quantity is None or (
        quantity.literal is None and not is_text and not units.parse(unit_text)
    ):
        return None
    return _scaled(quantity, unit_text.replace(",", " ").split())


def _with_spaced_unit(text: str) -> Quantity | None:
    r"""Parse a formula with known units behind a space: "300 K", "2 m s^{-2}", "60 \frac{m}{s}"."""
    found = _SPACED_UNIT.fullmatch(text)
    if not found:
        return _with_unit(text) if _CIRCLE_UNIT.search(text) else None
    unit_text = found["unit"] or found["ratio"]
    unit_text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", unit_text)
    unit_text = re.sub(r"\\mu\s*", "u", unit_text)
    unit = units.parse(re.sub(r"([A-Za-z])\s+(?=\\Omega)", r"\1", unit_text), whole=True)
    quantity = _quantity(found["body"]) if unit else None
    if quantity is None or quantity.node.kind in ("add", "pm", "mp"):  # 1 + 2 m is a sum
        return None
    return replace(quantity, unit=unit)


def _scaled(quantity: Quantity, words: list[str]) -> Quantity | None:
    """Apply the words after a number: scales, percent, a unit; None if they change its meaning."""
    lower = [word.lower().strip(".,") for word in words]
    if units.CHANGING.intersection(lower):
        return None
    node, literal = quantity.node, quantity.literal
    while lower and lower[0] in units.SCALES:
        scale = Fraction(units.SCALES[lower[0]])
        node = Node("mul", (formulas.rational(scale), node))
        literal = literal.times(scale) if literal else None
        words, lower = words[1:], lower[1:]
    if lower[:1] == ["percent"] or lower[:2] == ["per", "cent"]:
        literal = literal.as_percent() if literal else None
        node = Node("div", (node, formulas.rational(100)))
        words = []
    opposite = units.OPPOSITES.intersection(lower)
    return Quantity(node, literal, units.parse(" ".join(words)), opposite)


def _compound(text: str) -> Quantity | None:
    """Parse a sum of numbers with units of one dimension: "3 h 5 min"."""
    parts, at = [], 0
    while found := _COMPOUND.match(text, at):
        at = found.end()
        unit = units.parse(found.group(2))
        if unit is None:
            return None
        parts.append((Fraction(found.group(1)), unit))
    if text[at:].strip() or len(parts) < 2 or len({unit.powers for _, unit in parts}) > 1:
        return None
    total = sum((value * unit.factor for value, unit in parts), Fraction(0))
    unit = units.Unit(Fraction(1), parts[0][1].powers)
    return replace(_of_number(Number(total)), unit=unit, compound=True)


def _in_words(text: str, leading_words: bool) -> Quantity | None:
    """Parse one number among words: "18 dollars per day", "negative 5", "5 million"."""
    found = _WORDS_AROUND.fullmatch(text)
    if not found:
        return None
    before = [word.lower().strip(":,.") for word in found["before"].split()]
    negative = _negated(before, leading_words)
    if negative is None:
        return None
    after = re.split(r"[\s-]+", found["after"].strip(" -"))
    if not all(map(_WORD.fullmatch, filter(None, after))) or _TERM.search(found["after"]):
        return None  # "30 - 8p dollars" and "5 minus x" are other formulas
    number = found["number"].replace(",", "")
    if re.search(r"\d/\d|\d [23]?$", found["after"]):
        return None
    first = re.match(r"([\s-]*)([A-Za-z.]+)", found["after"])
    if first and not units.find(first[2]):  # "2xy" and "5 ab" are products
        apart = found["gap"] or found["percent"] or first[1]
        if not apart or (len(first[2].strip(".")) < 3 and first[2].lower() not in _SMALL_WORDS):
            return None
    elif first and len(first[2]) == 1:
        return None
    number = re.sub(r"^(\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}", number)
    negative = negative != bool(found["sign"])
    quantity = _quantity(("-" if negative else "") + number + (found["percent"] or ""))
    if quantity is None:
        return None
    scaled = _scaled(quantity, found["after"].replace("-", " ").split())
    if scaled is None or not found["symbol"]:
        return scaled
    return replace(scaled, unit=units.currency(found["symbol"].lstrip("US\\")))


def _negated(before: list[str], leading_words: bool) -> bool | None:
    """Return whether the words before a number negate it; None if they change it otherwise.

    Other words must not stand there without `leading_words`.
    """
    negative = units.is_negative(before)
    rest = before[:-1] if negative else before
    if before and before[-1] in vocabulary.FUNCTION_NAMES:  # "ln 5" is no 5
        return None
    if (rest and not leading_words) or units.CHANGING_BEFORE.intersection(rest):
        return None
    return negative


def _spelled_out(text: str, leading_words: bool) -> Quantity | None:
    """Parse a number in words: "five", "negative twenty-five", "five million dollars"."""
    words = re.sub(r"[.,]", " ", text.lower()).split()
    if not words or not all(re.fullmatch(r"[a-z'\u2019-]+", word) for word in words):
        return None
    part = _part_in_words(text.lower())
    if part is not None:
        return _of_number(Number(part))
    if words[0] == "a" and words[1:] and words[1] in units.SCALES:
        words = ["one", *words[1:]]
        if words[1] in ("dozen", "dozens"):
            return _scaled(_of_number(Number(Fraction(1))), words[1:])
    starts = range(len(words)) if leading_words else range(min(2, len(words)))
    for start in starts:
        found = units.number_in_words(words[start:])
        if not found:
            continue
        negative = _negated(words[:start], leading_words)
        after = words[start + found[1] :]
        if negative is None or any(word in units.NUMBER_WORDS for word in after):
            return None
        literal = Number(Fraction(-found[0] if negative else found[0]), places=0)
        return _scaled(_of_number(literal), after)
    return None


def _part_in_words(text: str) -> Fraction | None:
    """Return the value of "half", "two thirds", "one-quarter"."""
    *above, below = text.replace("-", " ").split()
    parts = units.PARTS_IN_WORDS.get(below.removesuffix("s"))
    if parts is None:
        return None
    if above in ([], ["a"], ["an"]):
        return Fraction(1, parts) if above or parts == 2 else None
    count = units.number_in_words(above)
    return Fraction(count[0], parts) if count and count[1] == len(above) else None
