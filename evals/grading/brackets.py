r"""Brackets in LaTeX: what they enclose, and where a text can be split outside of all of them.

The brackets of a pair may differ, as in the interval [1,2).
"""

import re

_OPEN, _CLOSE = "([{", ")]}"
_OPENING = frozenset([*_OPEN, "\\{", "\\langle", "\\begin"])
_CLOSING = frozenset([*_CLOSE, "\\}", "\\rangle", "\\end"])
_TOKEN = re.compile(r"\\(?:begin|end|langle|rangle|[^a-zA-Z])|.", re.DOTALL)


def are_around_all(text: str) -> bool:
    """Return whether the bracket that a text starts with is closed at its end, not before."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return at == len(text) - 1
    return False


def are_balanced(text: str) -> bool:
    """Return whether each bracket has its counterpart."""
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0


def without_outer_braces(text: str) -> str:
    """Remove braces around the whole text, which LaTeX does not show."""
    while text.startswith("{") and text.endswith("}") and are_around_all(text):
        text = text[1:-1].strip()
    return text


def split_outside(text: str, separator: re.Pattern[str], keep: bool = False) -> list[str]:
    r"""Split where a separator stands outside of all brackets and of \begin ... \end.

    Args:
        text: the text.
        separator: the pattern to split at.
        keep: whether the separators are returned, too, between the parts.
    """
    parts, start, at, depth = [], 0, 0, 0
    while token := _TOKEN.match(text, at):
        change = (token.group() in _OPENING) - (token.group() in _CLOSING)
        if depth == 0 and not change and (found := separator.match(text, at)):
            parts.append(text[start:at].strip())
            if keep:
                parts.append(found.group())
            start = at = found.end()
            continue
        depth += change
        at = token.end()
    parts.append(text[start:].strip())
    return parts
