"""The command line: `otr sweep`, `train`, `pack`, `data`, `score`, `explain`, ...

Exit codes: 0; 1 if something failed; 2 for a wrong command line; 129 after the terminal was closed,
130 after Ctrl-C, 143 after SIGTERM. An error is one line on stderr; its traceback is in the run's
log.
"""

import importlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import tyro

from otr.config import RENAMED
from pipelines.config.commands import Command
from pipelines.config.options import UsageError
from pipelines.runtime import console, stopping

RENAMED_OPTIONS = {
    f"--train.{old}".replace("_", "-"): f"--train.{new}".replace("_", "-")
    for old, new in RENAMED.items()
} | {"--no-prove": "--no-serve-check"}
"""Old spellings of options, accepted for one release."""
_MAX_ERROR = 500  # characters of an unexpected error


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Raises:
        SystemExit: after --help, or for a command line that tyro cannot parse.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with console.going_on_without_reader():
        if words == ["--version"]:
            console.say(f"otr {version('otr')}")
            return 0
        return _run(parse(words))


def _run(command: Command) -> int:
    """Run a command; return its exit code."""
    try:
        with stopping.exit_at_signal():
            return importlib.import_module(f"pipelines.{command.module}").run(command)
    except (KeyboardInterrupt, stopping.Stopped) as stop:
        console.note("stopped: run the same command again to resume")
        return stop.code if isinstance(stop, stopping.Stopped) else 130
    except Exception as error:
        return _report(error)


def parse(words: Sequence[str]) -> Command:
    """Parse a command line; old spellings are accepted.

    Raises:
        SystemExit: after --help, or if the command line is wrong.
    """
    return tyro.cli(
        Command,
        prog="otr",
        description="Fine-tune language models with token-level objectives, and compare them.",
        args=[*_current_spelling(words)],
    )


def _current_spelling(words: Sequence[str]) -> Iterator[str]:
    """Yield the words, with a line on stderr for each option whose name has changed.

    `otr score` takes its model as `--model` too, like the other commands.
    """
    if list(words[:2]) == ["score", "show"]:
        words = words[1:]
    scores = list(words[:1]) == ["score"]
    for word in words:
        name, equals, value = word.partition("=")
        if scores and name == "--model":
            yield from [value] if equals else []
            continue
        new = RENAMED_OPTIONS.get(name.replace("_", "-")) if name.startswith("--") else None
        if new:
            console.note(f"{name} is now called {new}; the old name will be removed")
        yield f"{new or name}{equals}{value}"


def _report(error: Exception) -> int:
    """Print an error; return the exit code."""
    notes = "; ".join(getattr(error, "__notes__", ()))
    expected = isinstance(error, ValueError | OSError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"[:_MAX_ERROR]
    console.error(f"{text} ({notes})" if notes else text)
    if not expected and not notes:
        traceback.print_exception(error)
    return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
