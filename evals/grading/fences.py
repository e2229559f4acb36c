"""The fenced blocks of a text in Markdown, as models write them.

A fence may be indented, quoted, or stand behind other text. The last block may not be closed.
"""

import re
import textwrap

from evals.grading.statements import STATEMENT_START, parses

MAX_FENCES = 40  # that are tried as the end of one block
_FENCE = re.compile(r"^[ \t]*(?:>[ \t]?)*(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_FENCE_AFTER_TEXT = re.compile(r"^(.*[^\s`>].*?)[ \t]*(```[\w+-]*[ \t]*)$")
_FIRST_FENCE = re.compile(r"^[ \t]*```", re.MULTILINE)


def with_separate_fences(text: str) -> str:
    """Return the text with each fence that stands behind other text on a line of its own."""
    return "\n".join(map(_with_separate_fence, text.split("\n")))


def _with_separate_fence(line: str) -> str:
    return _FENCE_AFTER_TEXT.sub(r"\1\n\2", line) if "```" in line else line


def text_before_fences(text: str) -> str:
    """Return the text before the first fence; the whole text if it has none."""
    return _FIRST_FENCE.split(text, maxsplit=1)[0]


def fenced_blocks(text: str) -> list[str]:
    """Return the contents of the fenced blocks that are not empty, in order.

    A block ends at the first fence at which its content is Python with a definition, so that a
    docstring may contain fences. If there is no such fence, it ends at the next one.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    blocks: list[str] = []
    position = 0
    while position < len(fences):
        start = fences[position] + 1
        ends = [*fences[position + 1 :], len(lines)]
        found = 0
        for number, end in enumerate(ends[:MAX_FENCES]):
            content = textwrap.dedent("\n".join(lines[start:end]))
            if "def " in content and parses(content):
                found = number
                break
        content = textwrap.dedent("\n".join(lines[start : ends[found]]))
        # A last fence with nothing but prose after it has closed a block, not opened one.
        is_closed = found < len(fences) - position - 1
        if content.strip() and (is_closed or not position or STATEMENT_START.search(content)):
            blocks.append(content + "\n")
        position += found + 2
    return blocks
