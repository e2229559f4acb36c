"""Records of JSON files: lines, an array, or objects that are spread over lines.

Lines can be read from any byte on. The other forms are read from the beginning, value by value, so
that only the current record is in memory.
"""

import codecs
import io
import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Literal

from otr.training.sources.text import COMPRESSED, FormatError, is_utf16, open_utf8

HEAD_BYTES = 2**20  # of a file that are looked at to tell its form
READ_BYTES = 2**18
Form = Literal["lines", "array", "objects"]

_DECODER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n\ufeff]*")
_ENDING_CHARS = 32  # an error so near the end of the text may be due to the end


def form_of(path: str) -> Form:
    """Return how a file holds its records, told by its beginning.

    Raises:
        OSError, EOFError, ValueError: the file can't be read.
    """
    with open_utf8(path) as file:
        line, complete = _first_line(file)
        opening = line[:1]
        if opening not in (b"[", b"{"):
            return "lines"
        if complete and _is_json(record_text(line)):
            if _has_text(file):
                return "lines"
            return "array" if opening == b"[" else _form_of_one_line(path)
        if opening == b"[":
            return "array"
        if not complete:  # only lines and files of one line have such long ones
            _skip_line(file)
            return "lines" if _has_text(file) else _form_of_one_line(path)
        # An object over several lines, or lines of which the first is broken.
        head = line + b"\n" + file.read(HEAD_BYTES)
        if _begins_json(head, ended=len(head) < HEAD_BYTES) or line.rstrip()[-1:] in (b"{", b"["):
            return "objects"
        return "lines"


def is_divisible(path: str) -> bool:
    """Return whether parts of an uncompressed file can be read on their own."""
    return not is_utf16(path) and form_of(path) == "lines"


def read_lines(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Yield (text, first byte) of each line that begins from `start` on and before `end`."""
    with open_utf8(path) as file:
        position = start
        if start:
            file.seek(start - 1)
            position += len(file.readline()) - 1
        while end is None or position < end:
            line = file.readline()
            if not line:
                break
            if text := record_text(line):
                yield text, position
            position += len(line)


def record_text(line: bytes) -> bytes:
    """Return the record of a line, without the comma that separates it from the next one."""
    return line.removeprefix(codecs.BOM_UTF8).strip().removesuffix(b",")


def read_values(path: str, form: Form) -> Iterator[tuple[bytes, int]]:
    """Yield (text, number from 1) of each record of an array or of objects.

    Raises:
        FormatError: the text is no JSON, or it is not clear which objects are the records.
    """
    field = _field_of_records(path) if form == "objects" else None
    with open_utf8(path) as file:
        text = _JsonText(file)
        if form == "array":
            values = text.array()
        elif field is None:
            values = text.values()
        else:
            values = (each for name, values in text.object() if name == field for each in values)
        for number, (_, record) in enumerate(values, start=1):
            # Bytes that are not UTF-8 are as they were: the record is a broken one.
            yield record.encode(errors="surrogateescape"), number
        text.check_end()


def _first_line(file: io.BufferedReader) -> tuple[bytes, bool]:
    """Return the first line that is not blank, and whether it is complete."""
    while line := file.readline(HEAD_BYTES):
        text = line.removeprefix(codecs.BOM_UTF8).strip()
        if text:
            return text, line.endswith(b"\n") or len(line) < HEAD_BYTES
    return b"", True


def _skip_line(file: io.BufferedReader) -> None:
    while (line := file.readline(HEAD_BYTES)) and not line.endswith(b"\n"):
        pass


def _has_text(file: io.BufferedReader) -> bool:
    """Return whether anything but blanks follows."""
    return any(some.strip() for some in iter(lambda: file.read(HEAD_BYTES), b""))


def _form_of_one_line(path: str) -> Form:
    """Return the form of a file whose only line is an object: a record, or one that holds them."""
    name = path.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return "objects" if name.endswith(".json") else "lines"


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _begins_json(head: bytes, ended: bool) -> bool:
    """Return whether the head of a file begins with a JSON value, or with one that goes on."""
    text = head.decode(errors="replace")
    try:
        _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        return not ended and _may_go_on(error, text)
    except (ValueError, RecursionError):  # such as a number of too many digits
        return False
    return True


def _may_go_on(error: json.JSONDecodeError, text: str) -> bool:
    """Return whether an error may be due to the end of the text."""
    return error.msg.startswith("Unterminated") or error.pos > len(text) - _ENDING_CHARS


def _field_of_records(path: str) -> str | None:
    """Return the field of a file's object that lists the records; None if it is a record itself.

    Raises:
        FormatError: several fields are lists of objects.
    """
    from otr.data.conversations import form_of as form_of_record  # imports transformers

    names: list[str] = []
    lists: dict[str, dict[str, Any]] = {}  # the first object of each list
    # Reading the records reports errors, after those that precede it.
    with open_utf8(path) as file, suppress(FormatError):
        text = _JsonText(file)
        for name, values in text.object():
            names.append(name)
            for value, _ in values:
                if isinstance(value, dict):
                    lists[name] = value
                break
        if not text.at_end():  # several objects, each a record
            return None
    if form_of_record(dict.fromkeys(names, True), {}) or any(map(_is_message, lists.values())):
        return None
    if len(lists) > 1:
        raise FormatError(
            f"its object has several lists of objects, {', '.join(lists)}", "make a file of each"
        )
    return next(iter(lists), None)


def _is_message(value: dict[str, Any]) -> bool:
    return value.keys() >= {"role", "content"} or value.keys() >= {"from", "value"}


class _JsonText:
    """JSON text that is read piece by piece, with its values in order.

    Commas between values may be missing or too many: no value is lost by that.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.position = 0
        self.ended = False
        self.lines = 0
        """Line ends before `text`."""

    def values(self) -> Iterator[tuple[Any, str]]:
        """Yield each value up to the end of the file, with its text."""
        while not self.at_end():
            yield self._value()

    def array(self) -> Iterator[tuple[Any, str]]:
        """Yield each value of an array, with its text."""
        self._take("[")
        while self._next_char() != "]":
            yield self._value()
        self._take("]")

    def object(self) -> Iterator[tuple[str, Iterator[tuple[Any, str]]]]:
        """Yield each field of an object, with the values of its list; none if it is no list."""
        self._take("{")
        while self._next_char() != "}":
            name, _ = self._value()
            if not isinstance(name, str):
                raise self._error("a field without a name")
            self._take(":")
            is_list = self._next_char() == "["
            values = self.array() if is_list else iter(())
            if not is_list:
                self._value()
            yield name, values
            deque(values, maxlen=0)  # those that the caller has left
        self._take("}")

    def at_end(self) -> bool:
        """Return whether nothing follows but blanks."""
        return not self._next_char()

    def check_end(self) -> None:
        """Raise FormatError if anything follows but blanks."""
        if not self.at_end():
            raise self._error("there is text after the end of the records")

    def _next_char(self) -> str:
        """Return the next character that is neither blank nor a comma, "" at the end."""
        while True:
            blanks = _BLANKS.match(self.text, self.position)
            self.position = blanks.end() if blanks else self.position
            if self.position == len(self.text) and not self.ended:
                self._read_on()
            elif self.text.startswith(",", self.position):
                self.position += 1
            else:
                return self.text[self.position : self.position + 1]

    def _take(self, char: str) -> None:
        found = self._next_char()
        if found != char:
            reason = f"{found!r} in place of {char!r}" if found else "the file ends too early"
            raise self._error(reason)
        self.position += 1

    def _value(self) -> tuple[Any, str]:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self.ended or not _may_go_on(error, self.text):
                    self.position = error.pos
                    at_end = error.pos >= len(self.text.rstrip())
                    reason = "the file ends too early" if at_end else error.msg
                    raise self._error(reason.removesuffix(" starting at")) from error
            except ValueError as error:  # a number of too many digits
                raise self._error(str(error).partition(":")[0]) from error
            else:
                # A number at the end of the text may have further digits.
                if self.ended or end < len(self.text) - _ENDING_CHARS:
                    text, self.position = self.text[self.position : end], end
                    return value, text
            self._read_on()

    def _read_on(self) -> None:
        """Drop the text that was taken, and at least double the rest."""
        self.lines += self.text.count("\n", 0, self.position)
        rest = self.text[self.position :]
        data = self.file.read(max(READ_BYTES, len(rest)))
        self.ended = not data
        self.text = rest + self.decoder.decode(data, final=self.ended)
        self.position = 0

    def _error(self, reason: str) -> FormatError:
        line = self.lines + self.text.count("\n", 0, self.position) + 1
        return FormatError(f"{reason} in line {line}", "correct the file")
