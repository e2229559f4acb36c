r"""Formulas in LaTeX's math mode within a text: $x$, $$x$$, \(x\) and \[x\]."""

import re
from dataclasses import dataclass

FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\$)([^$\n]+?)(?<!\\)\$(?![\d$])|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
CONNECTIVE = re.compile(r"\s*(?:,?\s*\b(?:and|or)\b|,|;)\s*")
"""What stands between the formulas of a list."""


@dataclass(frozen=True)
class FormulaList:
    """One formula or several, as in "$1$, $2$ and $3$".

    Attributes:
        formula: all of them as one formula, "1, 2, 3".
        end: the index in the text at which they end.
    """

    formula: str
    end: int


def content(found: re.Match[str]) -> str:
    """Return what stands between the delimiters of a match of `FORMULA`."""
    return next(group for group in found.groups() if group is not None).strip()


def leading_formulas(text: str) -> FormulaList | None:
    """Return the list of formulas that a text starts with; None if it starts with other text."""
    last = FORMULA.match(text)
    if not last:
        return None
    parts = [content(last)]
    while following := CONNECTIVE.match(text, last.end()):
        after = FORMULA.match(text, following.end())
        if not after:
            break
        parts += [" \\text{ or } " if "or" in following.group() else ", ", content(after)]
        last = after
    return FormulaList("".join(parts), last.end())
