"""Answers that are the body of the function whose head the prompt gives."""

import re
import textwrap
from collections.abc import Sequence

from evals.grading.statements import Source


def starts_with_body(text: str, names: set[str]) -> bool:
    """Return whether a text starts with an indented line that does not define one of the names."""
    first = text.strip("\n").partition("\n")[0]
    defined = re.match(r"\s+(?:async\s+)?def\s+(\w+)", first)
    return first[:1].isspace() and not (defined and defined.group(1) in names)


def completed(prompt: str, candidates: Sequence[str], name: str) -> Source | None:
    """Return the prompt with the first of the candidates that is a body of its function.

    A model may leave out the indentation of the body, or of its first line. Of these readings, the
    one of which most can be parsed counts.

    Args:
        prompt: the code to complete; it ends with the head of the function.
        candidates: texts that may be the body.
        name: the name of the function.

    Returns:
        The completed code, or None if no candidate is a body.
    """
    margin = _margin(prompt)
    for candidate in candidates:
        if not candidate.strip():
            continue
        body = candidate.strip("\n")
        readings = [
            textwrap.indent(textwrap.dedent(body), margin),
            _with_first_line_aligned(body, margin),
        ]
        if body[0].isspace():
            readings.insert(0, body)
        found = [source for text in readings if (source := _with_body(prompt, text, name))]
        if found:
            return max(found, key=lambda source: len(source.text.split("\n")))
    return None


def _margin(prompt: str) -> str:
    """Return the indentation of the body that a prompt begins, such as a docstring's; else four."""
    last = prompt.rstrip().rpartition("\n")[2]
    return last[: len(last) - len(last.lstrip())] or "    "


def _with_first_line_aligned(body: str, margin: str) -> str:
    """Give the first line the indentation of the least indented line below it; indent all.

    What follows without any indentation is no part of the body.
    """
    lines = body.split("\n")
    is_inside = [not line.strip() or line[0].isspace() for line in lines[1:]]
    end = is_inside.index(False) + 1 if False in is_inside else len(lines)
    margins = [line[: len(line) - len(line.lstrip())] for line in lines[1:end] if line.strip()]
    lines[0] = min(margins, key=len, default="") + lines[0].lstrip()
    inside = textwrap.indent(textwrap.dedent("\n".join(lines[:end])), margin)
    return "\n".join([inside, *lines[end:]])


def _with_body(prompt: str, body: str, name: str) -> Source | None:
    """Return the prompt with a body of its function, or None if `body` is no such body."""
    source = Source.parse(f"{prompt.rstrip()}\n{body}")
    written = [each for each in source.statements if name in each.binds and not each.is_stub]
    if not written or not re.match(rf"(?:async\s+)?def\s+{name}\b", written[0].text):
        return None
    # A model that runs on may define the function once more.
    kept = [each for each in source.statements if name not in each.binds or each is written[0]]
    return Source(source.text, kept)
