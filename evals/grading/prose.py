# ruff: noqa: RUF001  # characters that look alike
r"""The last number of a line in words, with the formula and the words that belong to it.

A text that marks no answer ends with such a line. In "the chance is 1/2" its number is 1/2, and in
"it costs $5 million" five million: a part of either is another number.
"""

import re

from evals.grading import units

_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207b\u00bd\u00bc\u00be\u2153\u2154"  # and halves
_LETTER = rf"[^\W\d_\u0370-\u03ff{_RAISED}]"  # Greek letters are symbols
_FUNCTION = rf"(?:(?:arc)?(?:sin|cos|tan)|log|ln|exp|sqrt|pi)(?!{_LETTER})"
_WORD = re.compile(
    rf"(?<!{_LETTER})(?!{_FUNCTION}){_LETTER}{{2,}}|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]"
)
_OPERAND = (
    r"(?:(?:\d+ \d+/\d+|\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?%?"
    rf"(?:!(?=\s*[-+*/=)]|\s+[a-z]))?[{_RAISED}]*"
    rf"|(?<!{_LETTER})(?:{_FUNCTION}(?:\s+(?=\d))?|[A-Za-z](?!{_LETTER})[{_RAISED}]*)"
    r"|\\(?:[dt]?frac|sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp)\s+(?=[\d\\])"
    r"|\\(?!text|mathrm)[a-zA-Z]+(?:\{[^{}]*\})*|[π√∞(){}\[\]])"
)
_OPERATOR = (
    r"(?:\s*(?:[-−+±*/^=<>≤≥≈×·÷:_]|\\(?:times|cdot|pm|leq?|geq?|approx)(?![a-zA-Z]))\s*"
    r"|\s+(?=[π√\\])|\s+[xX]\s+(?=\d)|,\s*(?=[^()\[\]]{0,100}[)\]]))"
)
_SIGNS = r"[-−±$€£¥₹]*"
_FORMULA = re.compile(rf"{_SIGNS}{_OPERAND}(?:{_OPERATOR}?{_SIGNS}{_OPERAND})*")
_EMPHASIS = re.compile(r"(?<!\w)(?:\*+|_+|`+)(?=\S)|(?<=\S)(?:\*+|_+|`+)(?!\w)")
_MEASURE = re.compile(r"(?<=\d)[msghNJWVAKLFCT]$")
_CONNECTIVE = re.compile(r"\s*(?:,?\s*\b(and|or)\b|&)\s*")
_PART_OF = re.compile(r"\s+(?:out\s+of|in)\s+")
_AMOUNTS = re.compile(r"(?:\d+(?:\.\d+)?\s+[A-Za-z]+,?\s+(?:and\s+)?)+$")
_NAMED = re.compile(r"(?<![A-Za-z])[A-Za-z]\s*=[^=]*$")
_BETWEEN = re.compile(r"\bbetween\s+\S+$")
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
    listed = _listed(line, found[-2], found[-1]) if found[1:] else ""
    if listed:
        start, formula = found[-2].start(), listed
    scale = _NUMERALS.match(line, end)
    after = scale.group() if scale else kept_words(line[end:])
    before = _amounts_before(line[:start], f"{formula} {after}") if after else ""
    return f"{before or changing_word(line[:start], line[start:end])}{formula}{after}"


def _listed(line: str, earlier: re.Match[str], last: re.Match[str]) -> str:
    """Return two values of a list, such as "x = 1 and x = 2", or "1 out of 5"; "" for others."""
    between = line[earlier.end() : last.start()]
    if _PART_OF.fullmatch(between) and "=" not in last.group():
        return f"{earlier.group()}{between}{last.group()}"
    connective = _CONNECTIVE.fullmatch(between)
    before = line[: earlier.end()]
    is_named, is_or = _NAMED.search(before), connective and connective.group(1) == "or"
    if is_or:
        listed = bool(is_named) or "=" not in f"{before}{last.group()}"
    else:
        listed = bool(is_named and _NAMED.match(last.group())) or bool(_BETWEEN.search(before))
    if not connective or not listed:
        return ""
    separator = " \\text{ or } " if is_or else ", "
    return f"{_last_side(earlier.group())}{separator}{_last_side(last.group())}"


def _amounts_before(before: str, last: str) -> str:
    """Return "3 hours and " before "5 minutes"; "" if they are no amounts of one quantity."""
    amounts = _AMOUNTS.search(before)
    if not amounts:
        return ""
    names = re.findall(r"\d\s+(?:\\text\{\s*)?([A-Za-z]+)", f"{amounts.group()}{last}")
    known = [units.parse(name) for name in names]
    same = None not in known and len({unit.powers for unit in known if unit}) == 1
    return amounts.group() if same and re.match(r"[\d.]+\s", last) else ""


def changing_word(before: str, formula: str) -> str:
    """Return the word before a formula that makes another quantity of it; "" if none does.

    In "at least 2 + 3 = 5" the words do not belong to the 5.
    """
    last_words = re.search(r"[\w'\u2019\s]*$", before[-60:].lower().rstrip("*_`( "))
    words = last_words.group().split() if last_words and "=" not in formula else []
    while words and words[-1] in _FILLERS:
        words.pop()
    word = words[-1].replace("\u2019", "'") if words else ""
    if units.is_negative(words):
        return f"{word} "
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
