"""What a report shows of the run's directory: example answers, and links to its files."""

import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.records import read_answers
from pipelines.report.leaderboard import BASE, Entry, heading

_FILES = {
    "table.md": "the tables in Markdown",
    "leaderboard.json": "every score, as data",
    "data.json": "sizes of the training data, and what was found in it",
    "search.json": "every trial of the search, and the best setting of each arm",
    "contamination.json": "benchmark items that occur in the training corpus",
    "run.json": "all settings; --config repeats the run with them",
    "scores": "every prompt, answer and verdict, per trial and benchmark",
    "trials": "the checkpoints",
    "figures": "the figures",
    "logs": "logs of the driver, Ray and vLLM",
}
_GAINED, _LOST = 3, 2  # examples that the trial made right, and wrong
_MAX_LENGTH = 1500  # characters of a shown text


@dataclass(frozen=True)
class Example:
    """An item that the base model and a trial answered, one of them right and the other wrong."""

    base: dict[str, Any]
    trial: dict[str, Any]
    """The first answer of each; see `evals.records`."""


def choose_examples(scores: Path, trial: str, benchmark: str) -> list[Example]:
    """Return some items on which a trial differs from the base model, those that it gained first.

    Args:
        scores: directory of the answers, with a folder per trial.
        trial: name of the trial.
        benchmark: name of the benchmark.

    Returns:
        The examples; none if answers are missing, or the two are right on the same items.
    """
    files = [scores / name / f"{benchmark}.parquet" for name in (BASE, trial)]
    if not all(file.is_file() for file in files):
        return []
    base, other = (
        {answer["id"]: answer for answer in reversed(read_answers(file))} for file in files
    )
    both = [Example(base[id], other[id]) for id in reversed(base) if id in other]
    gained = [each for each in both if each.trial["correct"] > each.base["correct"]]
    lost = [each for each in both if each.trial["correct"] < each.base["correct"]]
    return [*gained[:_GAINED], *lost[:_LOST]]


def examples_section(directory: Path, best: Entry | None, benchmark: str) -> str:
    """Return the section with example answers of the base model and the best trial; "" if none."""
    examples = best and choose_examples(directory / "scores", best.trial, benchmark)
    if not best or not examples:
        return ""
    title = heading(benchmark, [best])
    shown = "".join(_example(each, best.trial) for each in examples)
    links = " and ".join(
        _link(directory, f"scores/{name}/{benchmark}.parquet", name) for name in (BASE, best.trial)
    )
    return (
        f"<section><h2>Example answers</h2><p>Items of {html.escape(title)} on which the base "
        f"model and {html.escape(best.trial)}, the best trial, differ. All answers: {links}. "
        "<code>otr show</code> prints them.</p>"
        f"{shown}</section>"
    )


def files_section(directory: Path) -> str:
    """Return the section with links to what lies beside the report; "" if nothing does."""
    lines = "".join(
        f"<li>{_link(directory, name, name)}: {text}</li>"
        for name, text in _FILES.items()
        if (directory / name).exists()
    )
    return f"<section><h2>Files of this run</h2><ul>{lines}</ul></section>" if lines else ""


def checkpoint_link(directory: Path, checkpoint: str) -> str:
    """Return the path of a checkpoint, as a link if it lies below the directory of the report."""
    name = os.path.relpath(checkpoint, directory.absolute())
    if name.startswith("..") or not (directory / name).exists():
        return f"<code>{html.escape(checkpoint)}</code>"
    return _link(directory, name, name)


def _link(directory: Path, path: str, text: str) -> str:
    """Return a link to a path below the directory; the text alone if nothing is there."""
    text = f"<code>{html.escape(text)}</code>"
    if not (directory / path).exists():
        return text
    return f'<a href="{html.escape(Path(path).as_posix())}">{text}</a>'


def _example(example: Example, trial: str) -> str:
    base, other = example.base, example.trial
    verdicts = [_verdict(answer) for answer in (base, other)]
    parts: Sequence[tuple[str, str]] = (
        ("question", base["prompt"]),
        ("reference answer", base["answer"]),
        (f"{BASE}: {verdicts[0]}", base["text"]),
        (f"{trial}: {verdicts[1]}", other["text"]),
    )
    shown = "".join(
        f"<h3>{html.escape(title)}</h3><pre>{html.escape(_shortened(text))}</pre>"
        for title, text in parts
    )
    title = f"{base['id']}: {BASE} {verdicts[0]}, {trial} {verdicts[1]}"
    return f"<details><summary>{html.escape(title)}</summary>{shown}</details>"


def _verdict(answer: dict[str, Any]) -> str:
    cut = ", cut off" if answer["finish_reason"] == "length" else ""
    return f"{'right' if answer['correct'] else 'wrong'}{cut}"


def _shortened(text: str) -> str:
    rest = len(text) - _MAX_LENGTH
    return text if rest <= 0 else f"{text[:_MAX_LENGTH]} … ({rest:,} more characters)"
