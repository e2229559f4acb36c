"""The outcome of a sweep as plain records.

In: what each trial was, how it trained and how it scored. Out: `leaderboard.json`, a list with one
`Entry` a trial and one for the base model; and `Arm`s, the rows of equal settings taken together.
What may be said of them is in `pipelines.report.differences`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from evals.benchmark import TaskScore
from evals.records import Verdicts, read_verdicts
from evals.statistics.estimates import Interval, interval_over_seeds

BASE = "base"
CAPTION = "% correct, mean over seeds [95 % interval]"
_BULKY = ("history", "verdicts")  # of a row, not in leaderboard.json
Score = dict[str, Any]
"""The fields of a `TaskScore`."""


@dataclass(frozen=True)
class Entry:
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
    verdicts: dict[str, Verdicts] = field(default_factory=dict)
    """By benchmark: how often each item was answered rightly; not in leaderboard.json."""
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By benchmark, of the row's arm to the reference arm: {against, difference, low, high, p,
    p_holm}, in [-1, 1]; p_holm is corrected for the number of arms."""
    checkpoint: str | None = None
    mlflow_run: str | None = None
    error: str | None = None

    def further(self, benchmark: str) -> dict[str, list[float]]:
        """The benchmark's other metrics: name to [value, low, high]."""
        return self.scores.get(benchmark, {}).get("also", {})


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, in [0, 1]."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Arm:
    """The rows that differ in their seed alone."""

    name: str
    rows: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """Any of them, for what they share."""
        return self.rows[0]

    @property
    def scored(self) -> int:
        """How many rows have scores."""
        return sum(bool(row.scores) for row in self.rows)

    def score(self, benchmark: str, metric: str = "") -> Estimate | None:
        """Mean over the seeds that have a score, or another `metric`; None where none has."""
        found = [r.scores[benchmark] for r in self.rows if benchmark in r.scores]
        if metric:
            found = [_further(s, metric) for s in found if metric in s.get("also", {})]
        return mean_over_seeds(found) if found else None

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


def mean_over_seeds(scores: Sequence[Score]) -> Estimate:
    """Mean of one benchmark's scores over seeds; see `interval_over_seeds`."""
    intervals = [Interval(s["value"], s["low"], s["high"]) for s in scores]
    return Estimate(*interval_over_seeds(intervals, scores[0]["num_examples"]))


def _further(score: Score, metric: str) -> Score:
    value, low, high = score["also"][metric]
    return {**score, "value": value, "low": low, "high": high}


def group_by_arm(rows: Sequence[Entry]) -> list[Arm]:
    """The rows by arm, in the order in which they come."""
    grouped: dict[str, list[Entry]] = {}
    for row in rows:
        grouped.setdefault(row.arm, []).append(row)
    return [Arm(name, tuple(group)) for name, group in grouped.items()]


def rank_arms(rows: Sequence[Entry], target: str) -> list[Arm]:
    """The arms by their score on `target`, best first; those without one last."""

    def key(arm: Arm) -> float:
        score = arm.score(target)
        return score.value if score else -1.0

    return sorted(group_by_arm(rows), key=key, reverse=True)


def retained_benchmarks(benchmarks: Sequence[str]) -> list[str]:
    """All but the target (the first) and those that are called target-..."""
    return [name for name in benchmarks[1:] if not name.startswith("target-")]


def best_trial(rows: Sequence[Entry], target: str) -> Entry | None:
    """Of the best arm's trials the one with the highest score on `target`."""
    for arm in rank_arms(rows, target):
        scored = [r for r in arm.rows if r.checkpoint and target in r.scores and arm.name != BASE]
        if scored:
            return max(scored, key=lambda r: r.scores[target]["value"])
    return None


def load_verdicts(scores: Sequence[TaskScore], folder: Path) -> dict[str, Verdicts]:
    """As a row keeps them, from the answers that scoring left in `folder`."""
    return {score.task: read_verdicts(folder / f"{score.task}.parquet") for score in scores}


def scores_by_task(scores: Sequence[TaskScore]) -> dict[str, Score]:
    """As a row keeps them."""
    return {score.task: asdict(score) for score in scores}


def write(rows: Sequence[Entry], path: Path) -> None:
    """Write leaderboard.json, whole or not at all."""
    told = [{k: v for k, v in asdict(row).items() if k not in _BULKY} for row in rows]
    write_json(path, told)


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    scratch.replace(path)
