"""The results of a sweep: one entry per trial, and one for the base model.

`leaderboard.json` is a list of entries. Entries that differ only in their seed form an arm; scores
are compared between arms. `pipelines.report.differences` has the significance tests.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import mean
from typing import Any

from evals.benchmark import TaskScore
from evals.records import Verdicts, read_verdicts
from evals.statistics.estimates import Interval, interval_over_seeds
from evals.tasks import short_name
from otr.files import write_json
from otr.loss.objective import stored

BASE = "base"
"""Arm and trial name of the model before training."""
CAPTION = "Correct answers in %, mean over seeds [95 % interval]"
Score = dict[str, Any]
"""The fields of a `TaskScore`."""
_NOT_STORED = ("history", "verdicts")  # too large for leaderboard.json


@dataclass(frozen=True)
class Entry:
    """A trial, or the model before training."""

    trial: str
    arm: str
    objective: dict[str, Any] | None
    """Settings of the objective; None for the base model."""
    lr: float | None
    seed: int | None
    status: str
    """finished, stopped (early, by the scheduler) or failed; base for the base model."""
    scores: dict[str, Score] = field(default_factory=dict)
    """By benchmark."""
    tokens_per_second: float | None = None
    """Median of the training reports."""
    tokens: float | None = None
    """Tokens that were trained on, including repeated steps."""
    seconds: float | None = None
    """Time of the trial, including its start, validation, checkpoints and repeated steps."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last value of each val_ metric."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Every training report; not in leaderboard.json."""
    verdicts: dict[str, Verdicts] = field(default_factory=dict)
    """By benchmark, the share of right answers of each item; not in leaderboard.json."""
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By benchmark, score of this arm minus score of the reference arm: {against, difference, low,
    high, p, p_holm}, scores in [0, 1]; p_holm is corrected for the number of arms."""
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was measured besides accuracy: {value, low, high, n}, where n is the number of items,
    and the `difference` of this arm, as in `differences`; see `pipelines.report.measures`."""
    checkpoint: str | None = None
    mlflow_run: str | None = None
    error: str | None = None
    kl_weight: float = 0.0
    """Weight of the KL from the base model in the loss."""
    caveat: str = ""
    """Why the arms of this sweep can't be compared, if they can't: then there is no winner."""

    def other_metrics(self, benchmark: str) -> dict[str, list[float]]:
        """Return the metrics of several answers per item (pass@k, maj@n) as [value, low, high]."""
        return self.scores.get(benchmark, {}).get("also", {})


@dataclass(frozen=True)
class Arm:
    """The entries that differ only in their seed."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def first(self) -> Entry:
        """One of the entries, for the settings that all of them share."""
        return self.entries[0]

    @property
    def num_scored(self) -> int:
        """Number of entries that have scores."""
        return sum(bool(entry.scores) for entry in self.entries)

    def score(self, benchmark: str, metric: str = "") -> Interval | None:
        """Return the mean over the seeds that have a score, None if none has.

        Args:
            benchmark: name of the benchmark.
            metric: pass@k or maj@n; the main metric of the benchmark by default.
        """
        scores = [e.scores[benchmark] for e in self.entries if benchmark in e.scores]
        if metric:
            values = [s["also"][metric] for s in scores if metric in s.get("also", {})]
        else:
            values = [[s["value"], s["low"], s["high"]] for s in scores]
        if not values:
            return None
        return interval_over_seeds([Interval(*v) for v in values], scores[0]["num_examples"])

    def seeds(self) -> str:
        """Return the number of scored seeds, as "1 of 2" if some have no score; "" for the base."""
        if self.name == BASE:
            return ""
        total = len(self.entries)
        return str(total) if self.num_scored == total else f"{self.num_scored} of {total}"

    def mean_score(self, benchmarks: Sequence[str]) -> Interval | None:
        """Return the mean over benchmarks, None if a score is missing.

        The benchmarks' errors are taken as independent of each other.
        """
        scores = [score for name in benchmarks if (score := self.score(name)) is not None]
        if not scores or len(scores) < len(benchmarks):
            return None
        value = mean(s.mean for s in scores)
        below = math.hypot(*(s.mean - s.low for s in scores)) / len(scores)
        above = math.hypot(*(s.high - s.mean for s in scores)) / len(scores)
        return Interval(value, value - below, value + above)

    def tokens_per_second(self) -> float | None:
        """Return the mean training throughput over the seeds."""
        speeds = [e.tokens_per_second for e in self.entries if e.tokens_per_second]
        return mean(speeds) if speeds else None


def objective_kind(arm: Arm) -> tuple[str, str]:
    """Return the name of an arm's objective, and its variant: OTR's estimator, or a KL."""
    if arm.first.objective is None:
        return (BASE, "")
    objective, kl = stored(arm.first.objective), arm.first.kl_weight
    variant = objective.variant if objective else ""
    return arm.first.objective["name"], f"{variant} + {kl:g} KL" if kl else variant


def percent(interval: Sequence[float], unit: str = "") -> str:
    """Format (mean, low, high) in [0, 1] as percentages: "57.0 [47, 67]", "57.0 % [47, 67]"."""
    value, low, high = (100 * each for each in interval)
    return f"{value:.1f}{unit} [{low:.0f}, {high:.0f}]"


def group_by_arm(entries: Sequence[Entry]) -> list[Arm]:
    """Group entries by arm, in their order."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.arm, []).append(entry)
    return [Arm(name, tuple(group)) for name, group in groups.items()]


def rank_arms(entries: Sequence[Entry], target: str) -> list[Arm]:
    """Sort the arms by their score on `target`, best first, arms without a score last."""

    def key(arm: Arm) -> float:
        score = arm.score(target)
        return score.mean if score else -1.0

    return sorted(group_by_arm(entries), key=key, reverse=True)


def headings(benchmarks: Sequence[str]) -> dict[str, str]:
    """Return a short title of each benchmark: its name without options such as max_tokens=128.

    Names that would then be equal keep their options.
    """
    short = {name: short_name(name) for name in benchmarks}
    counts = Counter(short.values())
    return {name: name if counts[title] > 1 else title for name, title in short.items()}


def heading(benchmark: str, entries: Sequence[Entry]) -> str:
    """Return the short title of a benchmark among those on which the entries have scores."""
    names = {name: None for entry in entries for name in entry.scores}
    return headings([*(names | {benchmark: None})])[benchmark]


def retained_benchmarks(benchmarks: Sequence[str]) -> list[str]:
    """Return the benchmarks of skills that the model had before training.

    These are all but the target, which is the first, and those named target-*.
    """
    return [name for name in benchmarks[1:] if not name.startswith("target-")]


def best_trial(entries: Sequence[Entry], target: str) -> Entry | None:
    """Return the trial with the highest score on `target` among those of the best arm."""
    for arm in rank_arms(entries, target):
        scored = [e for e in arm.entries if e.checkpoint and target in e.scores]
        if scored and arm.name != BASE:
            return max(scored, key=lambda e: e.scores[target]["value"])
    return None


def summary(entries: Sequence[Entry], benchmarks: Sequence[str]) -> dict[str, float]:
    """Return the scores of the best arm, score/TASK, and of the base model, base_score/TASK.

    Args:
        entries: all trials and the base model.
        benchmarks: names of the benchmarks, the target first.
    """
    ranked = [arm for arm in rank_arms(entries, benchmarks[0]) if arm.num_scored]
    best = next((arm for arm in ranked if arm.name != BASE), None)
    base = next((arm for arm in ranked if arm.name == BASE), None)
    return {
        f"{prefix}/{name}{end}": value
        for prefix, arm in (("score", best), ("base_score", base))
        for name in benchmarks
        if arm and (score := arm.score(name))
        for end, value in zip(("", "_low", "_high"), score, strict=True)
    }


def scores_by_task(scores: Sequence[TaskScore]) -> dict[str, Score]:
    """Return the scores of a model as an entry stores them."""
    return {score.task: asdict(score) for score in scores}


def load_verdicts(scores: Sequence[TaskScore], folder: Path) -> dict[str, Verdicts]:
    """Load the verdicts of a model from the answers in `folder`, by benchmark."""
    return {score.task: read_verdicts(folder / f"{score.task}.parquet") for score in scores}


def write(entries: Sequence[Entry], path: Path) -> None:
    """Write leaderboard.json."""
    write_json(
        path,
        [{k: v for k, v in asdict(entry).items() if k not in _NOT_STORED} for entry in entries],
    )


def read(path: Path) -> list[Entry]:
    """Read leaderboard.json; the entries have no history and no verdicts.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    names = {each.name for each in fields(Entry)}
    try:
        return [
            Entry(**{key: value for key, value in stored.items() if key in names})
            for stored in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a leaderboard.json of a sweep: {error!r}") from error
