"""Read the answers behind the scores of a run.

In: a run, by its name or directory, and which answers. Out: each with its prompt, the reference
answer and the verdict, in a pager where there is a terminal; without a task, a table of what there
is. What a model wrote is shown without control characters.

    otr score show RUN --task gsm8k --wrong
    python pipelines/show_scores.py RUN --task gsm8k --item gsm8k/7
"""

import pydoc
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.records import read_answers
from pipelines.config import options
from pipelines.runtime import console

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SUFFIX = ".parquet"


@dataclass(frozen=True)
class Show:
    """Which answers to show: otr score show RUN --task TASK."""

    run: str = ""
    """Name of a run below `output`, or its directory."""
    task: str = ""
    """A benchmark of the run; empty: a table of all."""
    trial: str = ""
    """A trial, or base; empty: all that were scored."""
    item: str = ""
    """The id of an item; empty: all."""
    wrong: bool = False
    """Only wrong answers."""
    right: bool = False
    """Only right answers."""
    truncated: bool = False
    """Only answers that were cut off at the token limit."""
    output: str = "runs"
    """Directory of the runs."""


def main(argv: Sequence[str]) -> int:
    """Show the answers of the run that the first argument names.

    Raises:
        ValueError: no such run, task, trial or item; the nearest one is named.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--run", *words]
    asked = options.simple(Show, words, "otr score show")
    if not asked.run:
        raise options.UsageError("give a run: otr score show RUN --task TASK")
    if asked.wrong and asked.right:
        raise options.UsageError("--wrong and --right leave nothing: give one of them")
    folder = _folder(asked)
    trials = _chosen("trial", asked.trial, _names(folder.iterdir(), ""))
    if not asked.task:
        if asked.item or asked.wrong or asked.right or asked.truncated:
            raise options.UsageError("name the benchmark whose answers to show: --task TASK")
        _overview(folder, trials)
        return 0
    found = _names(folder.glob(f"*/*{_SUFFIX}"), _SUFFIX)
    (task,) = _chosen("task", asked.task, found)
    rows = [row for trial in trials for row in _read(folder / trial, task, trial)]
    if asked.item:
        _chosen("item", asked.item, list(dict.fromkeys(row["id"] for row in rows)))
    _page("\n".join(_told(rows, asked, several=len(trials) > 1)))
    return 0


def _folder(asked: Show) -> Path:
    """Where the answers of the run are."""
    output = Path(asked.output)
    for run in (Path(asked.run), output / asked.run):
        if (run / "scores").is_dir():
            return run / "scores"
    known = _names(output.glob("*/scores"), "", parent=True)
    raise ValueError(f"no run with scores at {asked.run!r}{_nearest(asked.run, known)}")


def _names(paths: Iterable[Path], suffix: str, *, parent: bool = False) -> list[str]:
    named = [path.parent if parent else path for path in paths]
    return sorted({p.name.removesuffix(suffix) for p in named if p.name.endswith(suffix)})


def _chosen(kind: str, wanted: str, known: list[str]) -> list[str]:
    """The one that is wanted, or all; a ValueError with the nearest where there is none."""
    if wanted and wanted not in known:
        raise ValueError(f"no {kind} {wanted!r} in this run{_nearest(wanted, known)}")
    return [wanted] if wanted else known


def _nearest(wanted: str, known: Sequence[str]) -> str:
    near = get_close_matches(wanted, known, 1, 0)
    return f": did you mean {near[0]!r}?" if near else ", nor any other"


def _read(folder: Path, task: str, trial: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{task}{_SUFFIX}"
    if path.is_file():
        for row in read_answers(path):
            yield {**row, "trial": trial}


def _overview(folder: Path, trials: Sequence[str]) -> None:
    """What there is: a line for each trial and task."""
    lines = []
    for trial in trials:
        for task in _names((folder / trial).glob(f"*{_SUFFIX}"), _SUFFIX):
            rows = list(_read(folder / trial, task, trial))
            right = sum(row["correct"] for row in rows)
            cut = sum(row["finish_reason"] == "length" for row in rows)
            lines.append([trial, task, str(len(rows)), str(right), str(cut)])
    console.table(["trial", "task", "answers", "right", "cut off"], lines)


def _told(rows: Sequence[dict[str, Any]], asked: Show, *, several: bool) -> Iterator[str]:
    """The answers by item: its prompt once, then what each trial answered."""
    wanted = [row for row in rows if _wanted(row, asked)]
    yield f"{len(wanted)} of {len(rows)} answers\n"
    by_item: dict[str, list[dict[str, Any]]] = {}
    for row in wanted:
        by_item.setdefault(row["id"], []).append(row)
    for item, answers in by_item.items():
        yield f"{'=' * 8} {item}"
        yield answers[0]["rendered"]
        yield f"{'-' * 8} reference answer: {answers[0]['answer']}"
        for row in answers:
            verdict = "right" if row["correct"] else "wrong"
            if row["finish_reason"] != "stop":
                verdict += f", {row['finish_reason']}"
            extracted = "" if row["extracted"] is None else f", read as {row['extracted']!r}"
            who = f"{row['trial']}, " if several else ""
            yield f"{'-' * 8} {who}sample {row['sample']}: {verdict}{extracted}"
            yield row["text"]
        yield ""


def _wanted(row: dict[str, Any], asked: Show) -> bool:
    return (
        (not asked.item or row["id"] == asked.item)
        and not (asked.wrong and row["correct"])
        and not (asked.right and not row["correct"])
        and not (asked.truncated and row["finish_reason"] != "length")
    )


def _page(text: str) -> None:
    safe = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    if sys.stdout.isatty():
        pydoc.pager(safe)
    else:
        console.say(safe)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["score", "show", *sys.argv[1:]]))
