"""The command line: ``otr sweep | train | score | merge | doctor | ui``.

In: argv. Out: an exit code: 0, 1 where something failed, 2 for a command line that can't be
understood. An error is one line on stderr; its traceback is in the log of the run.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

from pipelines.runtime import console

COMMANDS = {
    "sweep": ("full_sweep", "train and score the arms of a preset; a table says which won"),
    "train": ("train_one", "fine-tune one model"),
    "score": ("score_checkpoint", "score any Hugging Face directory; score show RUN: its answers"),
    "merge": ("merge_adapter", "make a full model of a LoRA adapter"),
    "doctor": ("doctor", "check all that a sweep would need; --cluster FILE: before ray up"),
    "ui": ("ui", "open the MLflow UI on the runs"),
}


_LONGEST = 500  # of an error that is not one of ours, in characters


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; never raises for what a user can cause."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        _help()
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1, 0)[0]
        console.error(f"no command {name!r}: did you mean {near!r}?")
        return 2
    try:
        return importlib.import_module(f"pipelines.{COMMANDS[name][0]}").main(rest)
    except KeyboardInterrupt:
        console.error("interrupted; the same command goes on from here")
        return 130
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from pipelines.config.options import UsageError

    notes = "; ".join(getattr(error, "__notes__", ()))
    expected = isinstance(error, ValueError | OSError)
    text = str(error) if expected else f"{type(error).__name__}: {error}"[:_LONGEST]
    console.error(f"{text} ({notes})" if notes else text)
    if not expected and not notes:
        traceback.print_exception(error)
    return 2 if isinstance(error, UsageError) else 1


def _help() -> None:
    console.say("usage: otr COMMAND [OPTIONS]; otr COMMAND --help tells the options\n")
    for name, (_, purpose) in COMMANDS.items():
        console.say(f"  {name:<8} {purpose}")


if __name__ == "__main__":
    sys.exit(main())
