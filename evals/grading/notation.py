# ruff: noqa: RUF001  # characters that look alike are what this module replaces
r"""Normalization of mathematical answers that LaTeX, plain text and Python write in many ways.

`normalize` turns a final answer into a string that is still LaTeX. `compact` removes from that what
a reader does not see, for comparison. `parse_number` parses the value of a rational number.
"""

import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction

_WRITTEN = r"""
- −–‒﹣－‐‑
\times ×
\cdot ·⋅
\div ÷
\sqrt √
\infty ∞
\pm ±
\mp ∓
\cup ∪
\cap ∩
\setminus ∖
\in ∈
\le ≤
\ge ≥
\ne ≠
\approx ≈
^\circ °
^{\circ}C ℃
^{\circ}F ℉
' ′’
\emptyset ∅
\langle ⟨
\rangle ⟩
\angle ∠
\mathbb{R} ℝ
\lfloor ⌊
\rfloor ⌋
\lceil ⌈
\rceil ⌉
\lor ∨
\ell ℓ
\hbar ℏ
, ，
\land ∧
( （
) ）
/ ⁄
\frac{1}{2} ½
\frac{1}{4} ¼
\frac{3}{4} ¾
\frac{1}{3} ⅓
\frac{2}{3} ⅔
\alpha α
\beta β
\gamma γ
\delta δ
\epsilon ε
\zeta ζ
\eta η
\theta θ
\kappa κ
\lambda λ
\mu μµ
\nu ν
\xi ξ
\pi π
\rho ρ
\sigma σ
\tau τ
\phi φ
\chi χ
\psi ψ
\omega ω
\Gamma Γ
\Delta Δ
\Theta Θ
\Lambda Λ
\Sigma Σ
\Phi Φ
\Psi Ψ
\Omega Ω
"""
_SPACES = "\u00a0\u2009\u202f\u2002\u2003\u2005\u2006\u3000"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(_SPACES, " "),
        **{
            character: f"{command} " if command[-1].isalpha() else command
            for command, characters in map(str.split, _WRITTEN.strip().splitlines())
            for character in characters
        },
    }
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207f", "0123456789-n"
)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u207f]+")
_SUBSCRIPTS = str.maketrans(
    "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089", "0123456789"
)
_LOWERED = re.compile("[\u2080-\u2089]+")
_ENDLESS = re.compile(r"(\d*\.\d*?)(?:(\d)\2{2,}|(\d{2,3})\3+)\s*(?:\\[lc]?dots|\.{3}|\u2026)")
_DOTS = r"(?:\\[lc]?dots[bcm]?(?![a-zA-Z])|\.{3}|\u2026)"
_CUT_OFF = re.compile(rf"(^-?\d+|\d\.\d+)\s*{_DOTS}$")  # 3.14..., but not the list 1, 2, 3...
_TEXT = r"\\(?:text|mbox|textbf|textrm|mathrm|mathbf|rm)\s*\{([^{}]*)\}"

_STYLE = (
    r"\\(?:bf|it|large|Large|LARGE|huge|Huge|normalsize)(?![a-zA-Z])"
    r"|\\color\s*\{[a-zA-Z]+\}|\\textcolor\s*\{[a-zA-Z]+\}"
)
_NUMBER_IN_A_FONT = (  # \textit{5}
    r"^\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf)|boldsymbol|bm|emph|mbox|operatorname"
    r"|underline)\s*\{\s*(-?(?:\\?\$)?[\d.,]*\d)\s*\}$"
)
_ORDINAL = (  # behind a number: th, ^{th}, ^\text{th}
    r"(?<=\d)\s*\^?\s*(?:(?:st|nd|rd|th)|\{?\s*\\(?:text|mathrm|rm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}?"
    r"|\{\s*(?:st|nd|rd|th)\s*\})$"
)
_BASE_IN_WORDS = (  # "base 2", "(base 2)", "\text{ base } 2"
    r"(?<=[\dA-F])\s*(?:\\text\s*\{)?\s*\(?\s*base\s*\}?\s*(\d+)\s*\)?\s*\}?$"
)
_COMMAND_ESCAPED_TWICE = (  # \\frac, but not a new line of a matrix and \frac
    r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|pi|cdot|times|left|right|infty|math[rb][mbf]|pm|cup|circ)"
    r"(?![a-zA-Z]))"
)
_COUNTER = (  # a Chinese, Japanese or Korean unit behind a number, unless it changes the number
    r"(?<=\d)\s*(?![十百千万萬亿億兆半多以分余餘倍成割만억천백])"
    r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]+$"
)


def _joined(group: re.Match[str]) -> str:
    """Remove what separates groups of three digits."""
    return re.sub(r"\D", "", group.group())


def _joined_digits(number: re.Match[str]) -> str:
    """Remove what separates the digits of a number, but not its sign."""
    return re.sub(r"[_']", "", number.group())


_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (_COMMAND_ESCAPED_TWICE, r"\\"),
        (rf"{_STYLE}", ""),
        (_NUMBER_IN_A_FONT, r"\1"),
        (r"^(?i:(?:the )?(?:final )?answer(?: is|\s*[:=]))\s*", ""),
        (_ORDINAL, ""),
        (_BASE_IN_WORDS, r"_{\1}"),
        (r"_\{\s*\((\d+)\)\s*\}", r"_{\1}"),
        (r"^(-?\d{1,3})((?:_\d{3})+|(?:'\d{3})+)(?=\.\d+$|$)", _joined_digits),
        (r"(?:\s*\\\\)+$", ""),
        (r"\\(?:nicefrac|sfrac)(?![a-zA-Z])", r"\\frac"),
        (r"(?<![\d\w}])\^\{?(\d+)\}?\s*/\s*_\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"^([^{}]*)\\over(?![a-zA-Z])([^{}]*)$", r"\\frac{\1}{\2}"),
        (r"\\wedge(?![a-zA-Z])", r"\\land "),
        (r"\\pounds(?![a-zA-Z])", "\u00a3"),
        (r"\\euro(?![a-zA-Z])", "\u20ac"),
        (_COUNTER, ""),
        (r"(?<!\\)\$|(?<=\d)\\\$|(?<!\\)\\[()\[\]]", ""),
        (r"[{(]([^{}()]*)\\choose(?![a-zA-Z])([^{}()]*)[})]", r"\\binom{\1}{\2}"),
        (r"(?<=\d)(?:\s*[xX]\s*(?=10\s*\^)|\s+[xX]\s+(?=\d))", r"\\times "),
        (r"^<([^<>=]*,[^<>=]*)>$", r"\\langle \1 \\rangle"),
        (
            r"\\(?:left|right|middle|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\displaystyle|\\limits(?![a-zA-Z])",
            "",
        ),
        (r"(?<=\d)\s*(?:,\s*\\!|\{,\s*\})\s*(?=\d{3}(?!\d))", ""),  # LaTeX's digit groups
        (r"(?<![\d.^_])\d{1,3}(?:(?:\\[,;: ]|~| |\{ \})\d{3})+(?!\d)", _joined),  # "1 000 000"
        (r"(?<!\\)\\!|\{\}", ""),
        (r"\{,\s*\}", ","),
        (
            r"(?:(?<![\d.,(\[{=])|(?<==))\s*\d{1,3}(?:,\d{3})+(?![\d,])"
            r"(?=(?:\.\d+)?\s*(?:\\?%|\\(?:text|mbox|mathrm)|[A-Za-z]{2}))",
            lambda group: group.group().replace(",", ""),
        ),
        (
            r"(?:(?<=[=$])|(?<=[=$] ))\d{1,3}(?:,\d{3})+(?=(?:\.\d+)?$)",
            _joined,
        ),
        (r"(?<!\\)\{\s*\d{1,3}(?:,\d{3})+\s*\}", lambda group: group.group().replace(",", "")),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\s+", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (
            r",?\s*(?:\\(?:text|mbox|mathrm)\s*\{\s*,?\s*or,?\s*\}|\{or\}|(?<![\\a-z]) or )",
            r" \\lor ",
        ),
        (r",?\s*(?:\\(?:text|mbox|mathrm)\s*\{\s*,?\s*and,?\s*\}|(?<=[\d})]) and |,\s*and )", ", "),
        (r"(?<=[A-Z]),? and (?=[A-Z]+\}?$)", ", "),  # "I, II and III"
        (r",\s*,", ","),
        (r"_\{\\(?:mathrm|text|rm)\s*\{([^{}]*)\}\}", r"_{\1}"),
        (r"_(?:\{\\(odot|oplus|max|min)\s*\}|\\(odot|oplus|max|min)(?![a-z]))", r"_{\1\2}"),
        (r"\b(?:np|math)\.(?=[a-z])", ""),
        (r"(?<=\d)\.(?=\s*(?:/|$))", ""),
        (r"(?<![\\a-zA-Z])(a?r?c?(?:sin|cos|tan)|ln|log|exp)(?=\()", r"\\\1"),
        (r"(?<![\\a-zA-Z])(?:sqrt)\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\a-zA-Z])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![\\a-zA-Z])oo(?![a-zA-Z])", r"\\infty "),
        (r"\s*\\text\s*\{\s*for all\s*\}\s*[a-z](?:\s*\\in\s*\\mathbb\s*\{?R\}?)?$", ""),
        (r"(?<=\d)[eE]\+?(-?\d+)(?![\w.])", r" \\times 10^{\1}"),
        (r"^(-?)(\d[\d.,]*)\s*(?:\\text\s*\{\s*)?([€£¥₹])\s*\}?$", r"\1\3\2"),
    )
]
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:\\frac\{(?P<fsign>-?)(?P<a>\d+)\}\{(?P<b>\d+)\}|(?P<c>\d+)/(?P<d>\d+)"
    r"|(?P<whole>\d+)\\frac\{(?P<e>\d+)\}\{(?P<f>\d+)\}"
    r"|(?P<digits>\d+(?:\.\d+)?|\.\d+)(?:\\(?:times|cdot)10\^\{?(?P<power>-?\d{1,3})\}?)?)"
    r"(?P<percent>\\?%)?"
)
_GROUPED_NUMBER = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_REGIONAL = re.compile(
    r"(?P<before>-?(?:\\?\$|[€£¥₹])?\s*)"
    r"(?:(?P<whole>[1-9]\d{0,2}(?:\.\d{3})+|\d{1,3}(?: \d{3})+),(?P<part>\d+)"
    r"|(?P<decimal>\d+)\{,\}(?P<behind>\d{1,2}|\d{4,})"
    r"|(?P<grouped>\d{1,3}(?:\.\d{3}){2,}|\d{1,2}(?:,\d{2})+,\d{3}(?:\.(?P<fraction>\d+))?))"
    r"(?P<after>\s*[^\d.,]*)"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_BASES |= {"eight": "8", "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}
DIGIT_GROUP = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Number:
    """A rational number and how it was written.

    Attributes:
        value: the number, before "%" is applied.
        places: decimal places of a decimal, less the exponent; None if the number is exact.
        scientific: whether it has a power of ten.
        percent: whether it is followed by "%".
    """

    value: Fraction
    places: int | None = None
    scientific: bool = False
    percent: bool = False

    def equals(self, gold: "Number") -> bool:
        """Return whether the values are equal, up to rounding if either is a decimal.

        The number with fewer decimal places must be the other one, rounded to those places, and
        the relative difference at most 1e-6, or 1e-4 in scientific notation (as in the evaluation
        of Qwen2.5-Math). An integer is exact. "50%" equals both 50 and 0.5.
        """
        if self.percent != gold.percent:
            scale = Fraction(100) if gold.percent else Fraction(1, 100)
            if self.times(scale)._near(gold):
                return True
        return self._near(gold)

    def rounds(self, exact: Fraction) -> bool:
        """Return whether this decimal is `exact`, rounded, within a relative 1e-6."""
        return self._near(Number(exact))

    def times(self, scale: Fraction) -> "Number":
        """Return the number in another unit, with as many significant digits."""
        places = self.places
        if places is not None:
            places -= round(math.log10(scale))
        return replace(self, value=self.value * scale, places=places)

    def as_percent(self) -> "Number":
        """Return the number, followed by "%"."""
        return replace(self, percent=True)

    def _near(self, gold: "Number") -> bool:
        if self.value == gold.value:
            return True
        written = [number.places for number in (self, gold) if number.places is not None]
        if not written or gold._is_integer() or (self._is_integer() and not gold.scientific):
            return False
        difference = abs(self.value - gold.value)
        half = Fraction(10) ** -min(written) / 2
        tolerance = Fraction(1, 10_000 if self.scientific or gold.scientific else 1_000_000)
        return difference <= half and difference <= tolerance * abs(gold.value)

    def _is_integer(self) -> bool:
        return self.places is None and self.value.denominator == 1


def normalize(answer: str) -> str:
    r"""Remove dollar signs, spacing commands, `\left`, digit groups and a final full stop.

    `\dfrac12` and `(1)/(2)` become `\frac{1}{2}`, and "and" between numbers becomes a comma.
    """
    answer = _ENDLESS.sub(r"\1\\overline{\2\3}", answer)
    answer = re.sub(r"[\s~]{2,}", " ", answer)  # patterns with several spaces stay linear
    answer = re.sub(_DOTS, r"\\dots ", _CUT_OFF.sub(r"\1", answer.strip()))
    answer = _RAISED.sub(_exponent, answer)
    answer = _LOWERED.sub(lambda digits: f"_{{{digits.group().translate(_SUBSCRIPTS)}}}", answer)
    answer = answer.translate(_CHARACTERS).strip().strip('*`"\u201c\u201d').rstrip(".").strip()
    for pattern, replacement in _REWRITES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip(" ,;").rstrip(".").strip()
    whole_text = re.fullmatch(_TEXT, answer)
    if whole_text:
        answer = whole_text.group(1).strip()
    if _GROUPED_NUMBER.fullmatch(answer):
        answer = answer.replace(",", "")
    answer = re.sub(r"^(-?\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}", answer)
    return _slashes_to_fractions(answer)


def _exponent(raised: re.Match[str]) -> str:
    """Write raised digits as an exponent; one digit without braces, as in "12 cm^2"."""
    written = raised.group().translate(_SUPERSCRIPTS)
    alone = len(written) == 1 and not raised.string[raised.end() :][:1].isdigit()
    return f"^{written}" if alone else f"^{{{written}}}"


def regional_number(answer: str) -> str:
    r"""Return a number written as in Europe or India as in English; "" if it is none.

    "1.234,56" and "1 234,56" are 1234.56, "0{,}25" is 0.25, "2.000.000" is 2000000, "1,00,000" is
    100000. What may as well be a list or an English number counts as that first.
    """
    plain = re.sub(r"\\[,;: ]|[~\u00a0\u2009\u202f]", " ", answer.strip(" $"))
    found = _REGIONAL.fullmatch(plain)
    if not found:
        return ""
    part = found.groupdict("")
    whole = re.sub(r"\D", "", part["whole"] or part["decimal"] or part["grouped"])
    fraction = part["part"] or part["behind"] or part["fraction"]
    return f"{part['before']}{whole}{'.' * bool(fraction)}{fraction}{part['after']}"


def compact(answer: str) -> str:
    """Remove what a reader does not see from normalized text, which is then no longer LaTeX."""
    answer = re.sub(r"(?<!\d) | (?!\d)", "", answer)
    answer = re.sub(r"([\^_])\{(\w|\\circ)\}", r"\1\2", answer)
    return re.sub(r"^(-?)0+(?=\d)", r"\1", answer)


def normalize_words(answer: str) -> str:
    """Return the letters and digits of `answer` in lower case if it is words, else "".

    An article before the first word is dropped.
    """
    answer = re.sub(_TEXT, r"\1", answer)
    answer = re.sub(r"^\s*(?:the|an?)\s+(?=[a-z]{2})", "", answer, flags=re.IGNORECASE)
    is_words = re.search(r"[A-Za-z]\.?[A-Za-z]", answer) and not re.search(
        r"[\\^_+*/=<>()\[\]-]", answer
    )
    return re.sub(r"(?<!\d)[\W_]+|[\W_]+(?!\d)", "", answer).casefold() if is_words else ""


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
    power, digits = part["power"], part["digits"] or ""
    places = len(digits.partition(".")[2]) - int(power or 0) if "." in digits or power else None
    return Number(
        value=-value if negative else value,
        places=places,
        scientific=power is not None,
        percent=part["percent"] is not None,
    )


def parse_based_number(answer: str) -> tuple[str, int] | None:
    """Return digits and base of a compact number such as 110101_2, (2A)_{16} or 101_{two}."""
    digits = r"(?P<digits>[0-9A-Fa-f]*\.?[0-9A-Fa-f]+)"
    found = re.fullmatch(
        rf"(?P<sign>-?)(?:\{{?{digits}\}}?|\({digits.replace('digits', 'inside')}\))"
        r"_\{?(?:base)?(?P<base>\d+|[a-z]+)\}?",
        re.sub(_TEXT, r"\1", answer),
    )
    if not found:
        return None
    base, written = _BASES.get(found["base"], found["base"]), found["digits"] or found["inside"]
    if not base.isdigit() or not re.search(r"\d|^[A-F]+$", written):  # a_1 is no number
        return None
    return (found["sign"] + written.lstrip("0").upper(), int(base))


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
