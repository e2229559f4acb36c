r"""Normalization of mathematical answers that LaTeX, plain text and Python write in many ways.

`normalize` turns a final answer into a string that is still LaTeX. `compact` removes from that what
a reader does not see, for comparison. `parse_number` parses the value of a rational number.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_CHARACTERS = str.maketrans(
    {
        "−": "-",  # noqa: RUF001
        "–": "-",  # noqa: RUF001
        "×": r"\times ",  # noqa: RUF001
        "·": r"\cdot ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "∪": r"\cup ",  # noqa: RUF001
        "°": r"^\circ ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "\u00a0": " ",
    }
)
_TEXT = r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|rm)\s*\{([^{}]*)\}"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\?\$|(?<!\\)\\[()\[\]]", ""),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\displaystyle|\\limits(?![a-zA-Z])", ""),
        (r"(?<=\d)\s*(?:,\s*\\!|\{,\})\s*(?=\d{3}(?!\d))", ""),  # LaTeX's digit groups
        (r"(?<!\\)\\!|\{\}", ""),
        (r"\{,\}", ","),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\}|\{or\}|(?<=[\d}]) (?:and|or) ", ", "),
        (r",\s*,", ","),
        (r"_\{\\(?:mathrm|text|rm)\s*\{([^{}]*)\}\}", r"_{\1}"),
        (r"_(?:\{\\(odot|oplus|max|min)\s*\}|\\(odot|oplus|max|min)(?![a-z]))", r"_{\1\2}"),
        (r"\b(?:np|math)\.(?=[a-z])", ""),
        (r"(?<=\d)\.(?=\s*(?:/|$))", ""),
        (r"(?<![\\a-zA-Z])(a?r?c?(?:sin|cos|tan)|ln|log|exp)(?=\()", r"\\\1"),
        (r"(?<![\\a-zA-Z])(?:sqrt)\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<=\d)[eE]\+?(-?\d+)(?![\w.])", r" \\times 10^{\1}"),
    )
]
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac\{(?P<fsign>-?)(?P<a>\d+)\}\{(?P<b>\d+)\}|(?P<c>\d+)/(?P<d>\d+)"
    r"|(?P<whole>\d+)\\frac\{(?P<e>\d+)\}\{(?P<f>\d+)\}"
    r"|(?P<digits>\d+(?:\.\d+)?|\.\d+)(?:\\(?:times|cdot)10\^\{?(?P<power>-?\d{1,3})\}?)?)"
    rf"(?P<percent>\\?%)?(?:{_TEXT}(?:\^\{{?\d\}}?)?|\^\{{?\\circ\}}?)*"
)
_NAMED = re.compile(r"^\\?[a-zA-Z]+ ?(?:_\w|_\{[^{}]*\})? ?(?:\([\\a-z, ]*\))? ?=(?=[^=]*$)")
_GROUPED_NUMBER = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_IN_WORDS = re.compile(r"(?:[A-Za-z]{2,}\s+)*(-?[\d,]*\.?\d+%?)(?:\s+[A-Za-z]{2,}[.,]?)*")
DIGIT_GROUP = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Number:
    """A rational number and how it was written."""

    value: Fraction
    decimal: bool
    scientific: bool
    percent: bool

    def equals(self, other: "Number") -> bool:
        """Return whether the values are equal, up to rounding if either is a decimal.

        The relative tolerance is 1e-6, and 1e-4 in scientific notation (as in the evaluation of
        Qwen2.5-Math). "50%" equals both 50 and 0.5.
        """
        if self.percent != other.percent and self._near(other, 100 if other.percent else 0.01):
            return True
        return self._near(other, 1)

    def _near(self, other: "Number", scale: float) -> bool:
        value = self.value * Fraction(str(scale))
        if value == other.value:
            return True
        tolerance = Fraction(1, 10_000 if self.scientific or other.scientific else 1_000_000)
        rounded = self.decimal or other.decimal
        return rounded and abs(value - other.value) <= tolerance * abs(other.value)


def normalize(answer: str) -> str:
    r"""Remove dollar signs, spacing commands, `\left`, digit groups and a final full stop.

    `\dfrac12` and `(1)/(2)` become `\frac{1}{2}`, and "and" between numbers becomes a comma.
    """
    answer = answer.translate(_CHARACTERS).strip().strip("*").rstrip(".").strip()
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip(" ,")
    whole_text = re.fullmatch(_TEXT, answer)
    if whole_text:
        answer = whole_text.group(1).strip()
    if _GROUPED_NUMBER.fullmatch(answer):
        answer = answer.replace(",", "")
    answer = re.sub(r"^(-?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
    return _slashes_to_fractions(answer)


def extract_number(answer: str) -> str:
    """Return the number in `answer` if all else is words ("18 dollars per day"), else `answer`."""
    in_words = _IN_WORDS.fullmatch(answer)
    return DIGIT_GROUP.sub("", in_words.group(1)) if in_words else answer


def compact(answer: str) -> str:
    """Remove what a reader does not see from normalized text, which is then no longer LaTeX."""
    answer = re.sub(r"(?<!\d) | (?!\d)", "", answer)
    answer = re.sub(r"([\^_])\{(\w|\\circ)\}", r"\1\2", answer)
    return re.sub(r"^(-?)0+(?=\d)", r"\1", answer)


def normalize_words(answer: str) -> str:
    """Return the letters and digits of `answer` in lower case if it is words, else ""."""
    is_words = re.search(r"[A-Za-z]\.?[A-Za-z]", answer) and not re.search(
        r"[\\^_+*/=<>()\[\]-]", answer
    )
    return re.sub(r"[\W_]+", "", answer).casefold() if is_words else ""


def parse_number(answer: str) -> Number | None:
    """Parse a compact integer, decimal, fraction or mixed number, with or without a unit."""
    found = _NUMBER.fullmatch(answer) if len(answer) <= 200 else None
    if not found:
        return None
    part = found.groupdict()
    top, bottom = part["a"] or part["c"] or part["e"], part["b"] or part["d"] or part["f"]
    if bottom and not int(bottom):
        return None
    value = Fraction(int(top), int(bottom)) if top else Fraction(part["digits"])
    value = value * Fraction(10) ** int(part["power"] or 0) + int(part["whole"] or 0)
    negative = (part["sign"] == "-") != (part["fsign"] == "-")
    return Number(
        value=-value if negative else value,
        decimal="." in (part["digits"] or ""),
        scientific=part["power"] is not None,
        percent=part["percent"] is not None,
    )


def drop_names(gold: str, answer: str) -> tuple[str, str]:
    """Drop a leading "name =" from both if only one has it or the names agree."""
    names = [_NAMED.match(gold), _NAMED.match(answer)]
    same = len({compact(name.group()) for name in names if name}) == 1
    if same or ("=" in gold) != ("=" in answer):
        return _NAMED.sub("", gold), _NAMED.sub("", answer)
    return gold, answer


def parse_based_number(answer: str) -> tuple[str, int] | None:
    """Return digits and base of a compact number such as 110101_2."""
    found = re.fullmatch(r"([0-9A-F]+)_\{?(\d+)\}?", answer)
    return (found.group(1).lstrip("0"), int(found.group(2))) if found else None


def _slashes_to_fractions(answer: str) -> str:
    r"""Rewrite "(A)/(B)" as `\frac{A}{B}` unless a factor stands before it."""
    start = 0
    while (slash := answer.find(")/(", start)) >= 0:
        left = _matching_parenthesis(answer, slash, -1)
        right = _matching_parenthesis(answer, slash + 2, 1)
        before = answer[:left] if left is not None else ""
        if left is None or right is None or re.search(r"[\w})\]]$|\\[a-zA-Z]+ $|\d $", before):
            start = slash + 1
            continue
        above, below = answer[left + 1 : slash], answer[slash + 3 : right]
        answer = f"{before}\\frac{{{above}}}{{{below}}}{answer[right + 1 :]}"
        start = left
    return answer


def _matching_parenthesis(text: str, index: int, step: int) -> int | None:
    """Return the index of the parenthesis that matches the one at `index`, going by `step`."""
    depth = 0
    while 0 <= index < len(text):
        depth += {"(": step, ")": -step}.get(text[index], 0)
        if depth == 0:
            return index
        index += step
    return None
