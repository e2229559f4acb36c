"""What a run prints: one live line per stage, tables, and one line per error.

Results go to stdout; stage lines, notes and errors go to stderr. When stderr is not a terminal (a
file, a CI job), a stage prints its line at most every half minute, and once when it ends.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

QUIET_SECONDS = 30
_FILE_WIDTH = 160  # columns of a table that does not go to a terminal
_out = Console(highlight=False, soft_wrap=True)
_err = Console(highlight=False, soft_wrap=True, stderr=True)


class Stage:
    """A stage in progress: its title and what it is doing."""

    def __init__(self, title: str) -> None:
        self.title, self.detail = title, ""
        self.done = True
        """Whether the stage, if it ends without an exception, is marked ✓ rather than ~."""
        self.began = self._printed = time.monotonic()
        self._live: Live | None = None
        if _err.is_terminal:
            spinner = Spinner("dots", self._line())
            self._live = Live(
                spinner, console=_err, transient=True, redirect_stdout=False, redirect_stderr=False
            )

    def say(self, detail: str) -> None:
        """Show what the stage is doing."""
        self.detail = detail
        if self._live is not None:
            self._live.update(Spinner("dots", self._line()))
        elif time.monotonic() - self._printed > QUIET_SECONDS:
            self._printed = time.monotonic()
            _err.print(self._line())

    def _line(self) -> Text:
        return Text.assemble((f"{self.title:<10}", "bold"), f" {self.detail}")

    def _end(self, mark: str, style: str) -> None:
        seconds = f"{time.monotonic() - self.began:.0f} s"
        _err.print(Text.assemble((f"{mark} ", style), self._line(), (f"  {seconds}", "dim")))


class _LossyStream:
    """A stream that discards its text from the first error of writing on.

    Characters that its encoding lacks are escaped: half of one (a lone surrogate) in UTF-8, letters
    and bars in ASCII.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write to the stream, or discard the text."""
        try:
            return self._stream.write(self._encodable(text))
        except OSError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard what it holds."""
        try:
            self._stream.flush()
        except OSError:
            self._discard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _encodable(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _discard(self) -> None:
        # By its descriptor: Python flushes the stream once more when it exits.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def going_on_without_reader() -> Iterator[None]:
    """Let the body go on when nobody can read stdout or stderr any more.

    The terminal was closed, `| head` has ended, or the disk of a log is full: none of these ends a
    run.
    """
    out, err = (cast(TextIO, _LossyStream(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


@contextmanager
def stage(title: str, detail: str = "") -> Iterator[Stage]:
    """Show a live line while the body runs; print it with its duration when the body has ended."""
    shown = Stage(title)
    shown.say(detail)
    try:
        if shown._live is not None:
            with shown._live:
                yield shown
        else:
            yield shown
    except BaseException:
        shown._end("x", "red")
        raise
    shown._end(*(("✓", "green") if shown.done else ("~", "yellow")))


@contextmanager
def other_output_to(log: Path) -> Iterator[None]:
    """Append to `log` what other libraries print in this process while the body runs."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _out.file, _err.file = sys.stdout, sys.stderr
    try:
        with log.open("a", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        # With None rich looks up sys.stdout at each print again.
        _out.file = _err.file = None  # type: ignore[assignment]


def note(text: str) -> None:
    """Print a line on stderr that stays, above the live one."""
    _err.print(Text(text))


def say(text: str) -> None:
    """Print a line of the result on stdout."""
    _out.print(text, markup=False)


def marked() -> str:
    """Return how `say_marked` marks trained tokens."""
    return "trained tokens are green" if _out.is_terminal else "[trained tokens] are in brackets"


def say_marked(stretches: Sequence[tuple[str, bool]]) -> None:
    """Print a text of stretches that are trained or not."""
    if _out.is_terminal:
        styles = [(text, "bold green" if trained else "") for text, trained in stretches]
        _out.print(Text.assemble(*styles))
    else:
        say("".join(f"[{text}]" if trained else text for text, trained in stretches))


def error(text: str) -> None:
    """Print an error as one line on stderr."""
    _err.print(Text.assemble(("error: ", "bold red"), " ".join(text.split())))


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table on stdout; columns of numbers, except the first, are aligned to the right."""
    shown = Table(title=title or None, title_justify="left", header_style="bold", box=None)
    for i, column in enumerate(columns):
        numbers = i > 0 and all(row[i][:1].isdigit() or row[i] in ("", "-") for row in rows)
        justify: Literal["right", "left"] = "right" if numbers else "left"
        heading = column.replace(":", "\n:")  # break a benchmark before its options
        shown.add_column(heading, justify=justify, overflow="fold", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    wide = Console(file=_out.file, width=_FILE_WIDTH, highlight=False)
    (_out if _out.is_terminal else wide).print(shown, soft_wrap=False)
