"""What a model thinks, as opposed to what it writes: only the latter can hold an answer.

Thoughts stand between marks such as `<think>` and `</think>`. The text after the last closing mark
is written; a thought that is not closed runs to the end of the text. In the harmony format, marks
are special tokens; without them, a text is "analysis...assistantfinal...".
"""

import re

_FIRST_CHARACTERS = "<[\u25c1"  # of marks
_THOUGHT = r"(?:think|thinking|thought|reasoning|seed:think)"
_OPENED = re.compile(
    rf"<{_THOUGHT}>|\[THINK\]|<\|channel\|>analysis|<\|begin_of_thought\|>|\u25c1think\u25b7",
    re.IGNORECASE,
)
_CLOSED = re.compile(
    rf"</{_THOUGHT}>|\[/THINK\]|<\|channel\|>final<\|message\|>|<\|end_of_thought\|>|\u25c1/think\u25b7",
    re.IGNORECASE,
)
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z0-9\"'\\$])")
_BARE_FINAL = "assistantfinal"
_OPENED_AT_END = re.compile(rf"(?:{_OPENED.pattern})\s*$", re.IGNORECASE)


def after_thinking(text: str) -> str:
    """Return what a model writes after its thoughts; "" if they do not end."""
    rest = _after_last_thought(text)
    return "" if is_unfinished_thought(rest) else rest


def is_unfinished_thought(text: str) -> bool:
    """Return whether the text ends inside a thought."""
    rest = _after_last_thought(text)
    if _BARE_ANALYSIS.match(rest):
        return True
    return any(mark in rest for mark in _FIRST_CHARACTERS) and bool(_OPENED.search(rest))


def with_opening_mark(prompt: str, text: str) -> str:
    """Return a model's text, after `<think>` if the prompt ends by opening a thought."""
    return f"<think>{text}" if _OPENED_AT_END.search(prompt[-60:]) else text


def _after_last_thought(text: str) -> str:
    if _BARE_ANALYSIS.match(text) and _BARE_FINAL in text:
        return text.rpartition(_BARE_FINAL)[2]
    if not any(mark in text for mark in _FIRST_CHARACTERS):  # fast, for most texts
        return text
    ends = [closed.end() for closed in _CLOSED.finditer(text)]
    return text[ends[-1] :] if ends else text
