"""Show the answers behind the scores of a run, in a pager if stdout is a terminal.

Each item is shown with its prompt, the reference answer and the verdict; without a task, a table of
what is stored. Control characters in answers are escaped.

    otr show RUN --task gsm8k --wrong
    python pipelines/show_scores.py RUN --task gsm8k --item gsm8k/7
"""

import pydoc
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.records import read_answers
from otr.hints import did_you_mean
from pipelines.config.options import UsageError
from pipelines.runtime import console

if TYPE_CHECKING:
    from pipelines.config.commands import Show

Answer = dict[str, Any]
"""A stored answer (see `evals.records`) with the name of its trial."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SUFFIX = ".parquet"


def run(command: "Show") -> int:
    """Show the answers that a command line asks for; return the exit code.

    Raises:
        ValueError: there is no such run, task, trial or item; the nearest one is named.
    """
    if command.wrong and command.right:
        raise UsageError("--wrong and --right exclude each other: give one of them")
    folder = _scores_folder(command)
    trials = _select("trial", command.trial, _unique(path.name for path in folder.iterdir()))
    if not command.task:
        if command.item or command.wrong or command.right or command.truncated:
            raise UsageError("name the benchmark whose answers to show: --task TASK")
        _print_overview(folder, trials)
        return 0
    tasks = _unique(path.stem for path in folder.glob(f"*/*{_SUFFIX}"))
    (task,) = _select("task", command.task, tasks)
    answers = [answer for trial in trials for answer in _read(folder, trial, task)]
    if command.item:
        _select("item", command.item, list(dict.fromkeys(answer["id"] for answer in answers)))
    _print_paged("\n".join(_lines(answers, command, name_trials=len(trials) > 1)))
    return 0


def _scores_folder(command: "Show") -> Path:
    """Return the directory with the answers of the run."""
    output = Path(command.output)
    for directory in (Path(command.run), output / command.run):
        if (directory / "scores").is_dir():
            return directory / "scores"
    known = _unique(path.parent.name for path in output.glob("*/scores"))
    raise ValueError(f"no run with scores at {command.run!r}: {did_you_mean(command.run, known)}")


def _unique(names: Iterable[str]) -> list[str]:
    return sorted(set(names))


def _select(kind: str, wanted: str, known: list[str]) -> list[str]:
    """Return the name that is wanted, or all known names if none is.

    Raises:
        ValueError: the name is unknown.
    """
    if wanted and wanted not in known:
        raise ValueError(f"no {kind} {wanted!r} in this run: {did_you_mean(wanted, known)}")
    return [wanted] if wanted else known


def _read(folder: Path, trial: str, task: str) -> Iterator[Answer]:
    path = folder / trial / f"{task}{_SUFFIX}"
    if path.is_file():
        for answer in read_answers(path):
            yield {**answer, "trial": trial}


def _print_overview(folder: Path, trials: Sequence[str]) -> None:
    """Print a line per trial and task."""
    lines = []
    for trial in trials:
        for task in _unique(path.stem for path in (folder / trial).glob(f"*{_SUFFIX}")):
            answers = list(_read(folder, trial, task))
            right = sum(answer["correct"] for answer in answers)
            truncated = sum(answer["finish_reason"] == "length" for answer in answers)
            lines.append([trial, task, str(len(answers)), str(right), str(truncated)])
    console.table(["trial", "task", "answers", "right", "truncated"], lines)


def _lines(answers: Sequence[Answer], command: "Show", *, name_trials: bool) -> Iterator[str]:
    """Yield the text by item: its prompt once, then what each trial answered."""
    chosen = [answer for answer in answers if _is_chosen(answer, command)]
    yield f"{len(chosen)} of {len(answers)} answers\n"
    by_item: dict[str, list[Answer]] = {}
    for answer in chosen:
        by_item.setdefault(answer["id"], []).append(answer)
    for item, group in by_item.items():
        yield f"{'=' * 8} {item}"
        yield group[0]["rendered"]
        yield f"{'-' * 8} reference answer: {group[0]['answer']}"
        for answer in group:
            verdict = "right" if answer["correct"] else "wrong"
            if answer["finish_reason"] != "stop":
                verdict += f", {answer['finish_reason']}"
            if answer["extracted"] is not None:
                verdict += f", read as {answer['extracted']!r}"
            trial = f"{answer['trial']}, " if name_trials else ""
            yield f"{'-' * 8} {trial}sample {answer['sample']}: {verdict}"
            yield answer["text"]
        yield ""


def _is_chosen(answer: Answer, command: "Show") -> bool:
    return (
        (not command.item or answer["id"] == command.item)
        and not (command.wrong and answer["correct"])
        and not (command.right and not answer["correct"])
        and not (command.truncated and answer["finish_reason"] != "length")
    )


def _print_paged(text: str) -> None:
    safe = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    if sys.stdout.isatty():
        pydoc.pager(safe)
    else:
        console.say(safe)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["show", *sys.argv[1:]]))
