"""Where a text defines names: in Python from its start on, or in Python between prose."""

import re
from collections.abc import Sequence

from evals.grading.statements import STATEMENT_START, Source, Statement

MAX_STARTS = 200  # of statements that are tried in one text
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*(?:\s*:[^=]+)?\s*=[^=]")
_MARGIN = " \t>"  # of a block that is indented or quoted


def defining_source(text: str, names: set[str]) -> Source:
    """Return the part of a text that defines some names.

    What is defined inside of another function or class is not defined.

    Args:
        text: Python from its start on, or with prose before and between the statements.
        names: the names, at least one.

    Returns:
        The leading part of the text that is Python, if it defines all names. Otherwise the first
        later part that does, with the statements that stand between prose before it. If no part
        does, the first one that defines any of the names, or else the leading one.
    """
    source = Source.parse(text)
    if source.defined() >= names:
        return source
    pattern = "|".join(map(re.escape, names))
    if not re.search(rf"(?m)^[ \t>]*(?:async[ ]+def|def|class)[ ]+(?:{pattern})\b", text):
        return source
    lines = text.split("\n")
    before: list[Statement] = []
    end = 0
    for start in _statement_starts(lines)[:MAX_STARTS]:
        if start < end:
            continue
        later = Source.parse("\n".join(_without_margin(lines[start:])))
        if later.defined() >= names:
            return Source(later.text, [*before, *later.statements])
        if later.defined() & names and not source.defined() & names:
            source = later
        before += later.statements
        end = start + later.text.count("\n") + 1
    return source


def _statement_starts(lines: Sequence[str]) -> list[int]:
    """Return the numbers of the lines that look like imports, definitions or assignments."""
    stripped = [line.lstrip(_MARGIN) for line in lines]
    return [n for n, t in enumerate(stripped) if STATEMENT_START.match(t) or _ASSIGNMENT.match(t)]


def _without_margin(lines: Sequence[str]) -> list[str]:
    """Remove the margin of the first line from every line that has one as wide."""
    margin = len(lines[0]) - len(lines[0].lstrip(_MARGIN))
    return [line[margin:] if not line[:margin].strip(_MARGIN) else line for line in lines]


def last_defining(sources: Sequence[Source], names: set[str]) -> Source | None:
    """Return the last source that defines all names, else the last that defines one, or None."""
    complete = [source for source in sources if source.defined() >= names]
    found = complete or [source for source in sources if source.defined() & names]
    return found[-1] if found else None
