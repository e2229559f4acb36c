"""Reading of a text, token by token."""

import re

_SPACE = re.compile(r"\s*")
_COMMAND = re.compile(r"\\([a-zA-Z]+\*?)")
_CHARACTER = re.compile(r"\w")


class NoFormula(Exception):
    """The text is not a formula of the grammar."""


class Scanner:
    """A text and a position in it, from which tokens are taken. Spaces before them are skipped."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def peek(self) -> str:
        """Return the next character without taking it; "" at the end."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        return self.text[self.at : self.at + 1]

    def take(self, *tokens: str) -> str:
        r"""Take the first of `tokens` that comes next and return it; "" if none does.

        A command ends where its letters end: "\in" is not taken from "\infty".
        """
        self.peek()
        for token in tokens:
            if self.text.startswith(token, self.at):
                end = self.at + len(token)
                if token[0] == "\\" and token[-1].isalpha() and self.text[end : end + 1].isalpha():
                    continue
                self.at = end
                return token
        return ""

    def need(self, token: str) -> None:
        """Take a token; raise `NoFormula` if another one comes next."""
        if not self.take(token):
            raise NoFormula

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Take what a pattern matches at this position."""
        self.peek()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def command(self) -> str:
        r"""Take a command such as \alpha and return its name; raise `NoFormula` for other text."""
        found = self.match(_COMMAND)
        if not found:
            raise NoFormula
        return found.group(1)

    def next_command(self) -> str:
        """Return the name of a command at this very position without taking it; "" for none."""
        found = _COMMAND.match(self.text, self.at)
        return found.group(1) if found else ""

    def argument_text(self) -> str:
        """Take an argument of a command, a group or one token, and return its text as written."""
        if self.peek() != "{":
            found = self.match(_COMMAND) or self.match(_CHARACTER)
            if not found:
                raise NoFormula
            return found.group()
        depth, start = 0, self.at + 1
        for at in range(self.at, len(self.text)):
            depth += {"{": 1, "}": -1}.get(self.text[at], 0)
            if depth == 0:
                self.at = at + 1
                return self.text[start:at].strip()
        raise NoFormula
