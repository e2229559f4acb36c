"""The outcome of a sweep as plain records.

In: what each trial was, how it trained and how it scored. Out: `leaderboard.json`, a list with one
`Row` a trial and one for the base model; and `Arm`s, the rows of equal settings taken together.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from evals.benchmark import TaskScore

BASE = "base"
CAPTION = "% correct, mean over seeds [95 % interval]"
Score = dict[str, Any]
"""The fields of a `TaskScore`."""


@dataclass(frozen=True)
class Row:
    """A trial, or the model before training."""

    trial: str
    arm: str
    objective: dict[str, Any] | None
    """Its settings; None for the base model."""
    lr: float | None
    seed: int | None
    status: str
    """finished, stopped (early, by the scheduler) or failed; base."""
    scores: dict[str, Score] = field(default_factory=dict)
    """By benchmark: the fields of a `TaskScore`."""
    tokens_per_second: float | None = None
    """While training, median over its reports."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last val_ metrics."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every report of training; not in leaderboard.json."""
    checkpoint: str | None = None
    mlflow_run: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, in [0, 1]."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    def overlaps(self, other: "Estimate") -> bool:
        """Whether the two could be the same."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Arm:
    """The rows that differ in their seed alone."""

    name: str
    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """Any of them, for what they share."""
        return self.rows[0]

    @property
    def scored(self) -> int:
        """How many rows have scores."""
        return sum(bool(row.scores) for row in self.rows)

    def score(self, benchmark: str) -> Estimate | None:
        """Mean over the seeds that have a score; None where none has."""
        found = [r.scores[benchmark] for r in self.rows if benchmark in r.scores]
        return estimate(found) if found else None

    def seeds(self) -> str:
        """How many have scores, and of how many where some have none; empty for the base model."""
        if self.name == BASE:
            return ""
        every = len(self.rows)
        return str(every) if self.scored == every else f"{self.scored} of {every}"

    def retained(self, benchmarks: Sequence[str]) -> Estimate | None:
        """Mean over several benchmarks, taken as independent of each other."""
        found = [score for name in benchmarks if (score := self.score(name)) is not None]
        if not found or len(found) < len(benchmarks):
            return None
        value, n = mean(s.value for s in found), len(found)
        down = math.hypot(*(s.value - s.low for s in found)) / n
        up = math.hypot(*(s.high - s.value for s in found)) / n
        return Estimate(value, value - down, value + up)

    def tokens_per_second(self) -> float | None:
        """Mean over the seeds."""
        found = [r.tokens_per_second for r in self.rows if r.tokens_per_second]
        return mean(found) if found else None


def estimate(scores: Sequence[Score]) -> Estimate:
    """Mean of one benchmark's scores over seeds.

    The seeds answer the same items, so more seeds do not shrink the part of the interval that comes
    from the items; their own scatter, 1.96 sd / sqrt(n), is added to it in quadrature.
    """
    values = [s["value"] for s in scores]
    value = mean(values)
    scatter = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    down = math.hypot(mean(s["value"] - s["low"] for s in scores), scatter)
    up = math.hypot(mean(s["high"] - s["value"] for s in scores), scatter)
    return Estimate(value, max(0.0, value - down), min(1.0, value + up))


def arms(rows: Sequence[Row]) -> list[Arm]:
    """The rows by arm, in the order in which they come."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.arm, []).append(row)
    return [Arm(name, tuple(group)) for name, group in grouped.items()]


def ranked(rows: Sequence[Row], target: str) -> list[Arm]:
    """The arms by their score on `target`, best first; those without one last."""

    def key(arm: Arm) -> float:
        score = arm.score(target)
        return score.value if score else -1.0

    return sorted(arms(rows), key=key, reverse=True)


def retained_benchmarks(benchmarks: Sequence[str]) -> list[str]:
    """All but the target (the first) and those that are called target-..."""
    return [name for name in benchmarks[1:] if not name.startswith("target-")]


def verdict(rows: Sequence[Row], target: str) -> str:
    """One sentence that says which arm did best, and whether that can be told from chance."""
    trained = [a for a in ranked(rows, target) if a.name != BASE and a.score(target)]
    if not trained:
        return f"No trial has a score on {target}."
    best = trained[0]
    top = best.score(target)
    assert top is not None
    ties = [
        arm.name
        for arm in [*trained[1:], *(a for a in arms(rows) if a.name == BASE)]
        if (score := arm.score(target)) is not None and score.overlaps(top)
    ]
    if not ties:
        return f"{best.name} wins on {target}: {top} %, its interval apart from all others."
    if len({str(arm.score(target)) for arm in trained}) == 1 and len(trained) > 1:
        return f"No winner on {target}: every arm has {top} %."
    return (
        f"No clear winner on {target}: {best.name} has the highest mean, {top} %, but its interval "
        f"overlaps with that of {_listed(ties)}."
    )


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more arms")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def best_trial(rows: Sequence[Row], target: str) -> Row | None:
    """Of the best arm's trials the one with the highest score on `target`."""
    for arm in ranked(rows, target):
        scored = [r for r in arm.rows if r.checkpoint and target in r.scores and arm.name != BASE]
        if scored:
            return max(scored, key=lambda r: r.scores[target]["value"])
    return None


def table(rows: Sequence[Row], benchmarks: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The heads, and a line for each arm that has a score, the best first."""
    lines = []
    for arm in ranked(rows, benchmarks[0]):
        rate, speed = arm.first.lr, arm.tokens_per_second() or 0
        scores = [str(arm.score(name) or "-") for name in benchmarks]
        figures = [f"{rate:g}" if rate else "-", arm.seeds() or "-", *scores]
        if arm.scored:
            lines.append([arm.name, *figures, f"{speed:,.0f}" if speed else "-"])
    return ["arm", "lr", "seeds", *benchmarks, "tokens/s"], lines


def markdown(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """The table, what it shows, and the verdict."""
    columns, lines = table(rows, benchmarks)
    every = [columns, ["-"] * len(columns), *lines]
    body = "\n".join(f"| {' | '.join(line)} |" for line in every)
    return f"{verdict(rows, benchmarks[0])}\n\n{CAPTION}\n\n{body}\n"


def scores_of(scores: Sequence[TaskScore]) -> dict[str, Score]:
    """As a row keeps them."""
    return {score.task: asdict(score) for score in scores}


def write(rows: Sequence[Row], path: Path) -> None:
    """Write leaderboard.json, whole or not at all."""
    told = [{k: v for k, v in asdict(row).items() if k != "history"} for row in rows]
    write_json(path, told)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.replace(path)
