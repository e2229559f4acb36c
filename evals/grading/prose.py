# ruff: noqa: RUF001  # characters that look alike
r"""The last number of a line in words, with the formula and the words that belong to it.

A text that marks no answer ends with such a line. In "the chance is 1/2" its number is 1/2, and in
"it costs $5 million" five million: a part of either is another number.
"""

import re

from evals.grading import units

_LETTER = r"[^\W\d_\u0370-\u03ff]"  # Greek letters are symbols
_FUNCTION = rf"(?:(?:arc)?(?:sin|cos|tan)|log|ln|exp|sqrt|pi)(?!{_LETTER})"
_WORD = re.compile(
    rf"(?<!{_LETTER})(?!{_FUNCTION}){_LETTER}{{2,}}|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"
)
_OPERAND = (
    r"(?:(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?%?(?:!(?=\s*[-+*/=)]|\s+[a-z]))?"
    rf"|(?<!{_LETTER})(?:{_FUNCTION}|[A-Za-z](?!{_LETTER}))"
    r"|\\(?!text|mathrm)[a-zA-Z]+(?:\{[^{}]*\})*|[π√∞(){}\[\]])"
)
_OPERATOR = (
    r"(?:\s*(?:[-−+*/^=<>≤≥≈×·÷:_]|\\(?:times|cdot|pm|leq?|geq?|approx)(?![a-zA-Z]))\s*"
    r"|\s+(?=[π√\\])|\s+[xX]\s+(?=\d)|,\s*(?=[^()\[\]]{0,100}[)\]]))"
)
_SIGNS = r"[-−$€£¥₹]*"
_FORMULA = re.compile(rf"{_SIGNS}{_OPERAND}(?:{_OPERATOR}?{_SIGNS}{_OPERAND})*")
_EMPHASIS = re.compile(r"(?<!\w)(?:\*+|_+|`+)(?=\S)|(?<=\S)(?:\*+|_+|`+)(?!\w)")
_MEASURE = re.compile(r"(?<=\d)[msghNJWVAKLFCT]$")
_CONNECTIVE = re.compile(r"\s*(?:,?\s*\b(and|or)\b|&)\s*")
_AMOUNTS = re.compile(r"(?:\d+(?:\.\d+)?\s+[A-Za-z]+,?\s+(?:and\s+)?)+$")
_NAMED = re.compile(r"[A-Za-z]\s*=")
_FILLERS = ("of", "be", "to", "equal")
_HARMLESS = frozenset(
    ["or", "up", "more", "but", "least", "most", "base", "maximum", "minimum"]
)  # before a last number
_JOINING = frozenset(["percent", "per", "square", "cubic", "sq", *units.SCALES])
_CHANGES = frozenset(["or", "squared", "cubed", "factorial"])
_NUMERALS = re.compile(r"\s?[十百千万萬亿億兆만억천백]")  # scales, written behind the digits


def has_words(line: str) -> bool:
    """Return whether a line has words and is not just a formula."""
    return bool(_WORD.search(re.sub(r"\\[a-zA-Z]+", "", line)))


def last_number(line: str) -> str:
    """Return the formula with the last number of a line, and the words that belong to it."""
    line = _EMPHASIS.sub("", line)
    found = [each for each in _FORMULA.finditer(line) if re.search(r"\d", each.group())]
    if not found:
        return ""
    start, end = found[-1].span()
    formula = _last_side(found[-1].group())
    connective = _CONNECTIVE.fullmatch(line, found[-2].end(), start) if found[1:] else None
    named = [bool(_NAMED.match(each.group())) for each in found[-2:]]
    if connective and (all(named) or (connective.group(1) == "or" and "=" not in line)):
        start = found[-2].start()
        separator = " \\text{ or } " if connective.group(1) == "or" else ", "
        formula = f"{_last_side(found[-2].group())}{separator}{formula}"
    rest = line[end:]
    scale = _NUMERALS.match(rest)
    after = scale.group() if scale else kept_words(rest)
    amounts = _AMOUNTS.search(line, 0, start)
    if (
        amounts
        and after
        and "=" not in line[start:end]
        and _same_dimension(f"{amounts.group()}{formula} {after}")
    ):
        return f"{amounts.group()}{formula}{after}"
    return f"{changing_word(line[:start], line[start:end])}{formula}{after}"


def changing_word(before: str, formula: str) -> str:
    """Return the word before a formula that makes another quantity of it; "" if none does.

    In "at least 2 + 3 = 5" the words do not belong to the 5.
    """
    last_words = re.search(r"[\w'\u2019\s]*$", before[-60:].lower().rstrip("*_`( "))
    words = last_words.group().split() if last_words and "=" not in formula else []
    while words and words[-1] in _FILLERS:
        words.pop()
    word = words[-1].replace("\u2019", "'") if words else ""
    changes = word in units.CHANGING_BEFORE - _HARMLESS or word.endswith(("n't", "cannot"))
    return f"not {word} " if changes else ""


def kept_words(rest: str, changing: frozenset[str] = _CHANGES) -> str:
    """Return the words after a formula that belong to it: what changes it, scales and units."""
    words = rest.split() if re.match(r"\s", rest) else []
    if not words or words[0] == "in":
        return ""
    if words[0].lower().strip(",.") in changing:
        return f" \\text{{ {' '.join(words[:3])} }}"
    kept: list[str] = []
    for word in words:
        bare = word.rstrip(".,;:?!)*_")
        if not (bare.lower() in _JOINING or (bare != "in" and units.parse(bare))):
            break
        kept.append(bare)
        if bare != word:
            break
    return f" \\text{{ {' '.join(kept)} }}" if kept else ""


def _last_side(formula: str) -> str:
    """Return what stands after the last "=", without brackets that only one side has."""
    *_, last = re.split(r"[=≈]|\\approx", formula)
    if re.search(r"\d", last) and not re.search(r"[<>≤≥]|\\[lg]e", formula):
        formula = last
    formula = _MEASURE.sub("", formula.strip())
    for bracket, other in ((")", "("), ("]", "[")):
        if formula.endswith(bracket) and not re.search(rf"[{re.escape('([')}]", formula):
            formula = formula[:-1]
        if formula.startswith(other) and not re.search(rf"[{re.escape(')]')}]", formula):
            formula = formula[1:]
    return formula.strip()


def _same_dimension(text: str) -> bool:
    """Return whether "3 hours and 5 minutes" are amounts of one quantity."""
    names = re.findall(r"\d\s+(?:\\text\{\s*)?([A-Za-z]+)", text)
    known = [units.parse(name) for name in names]
    return None not in known and len({unit.powers for unit in known if unit}) == 1
