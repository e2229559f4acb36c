"""The tables of a sweep, and their text form for the terminal and table.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from evals.statistics.estimates import Interval
from otr.loss.objective import stored
from pipelines.report import differences
from pipelines.report.leaderboard import (
    CAPTION,
    Arm,
    Entry,
    headings,
    percent,
    rank_arms,
    retained_benchmarks,
)
from pipelines.stages.contamination import Overlap

Overlaps = Mapping[str, Overlap]
"""By benchmark, the items that occur in the training corpus."""
_INCOMPLETE = {
    "num_truncated": "cut off at the length limit",
    "num_repeating": "cut off in a loop",
    "num_timeouts": "timed out",
    "num_unfinished_thoughts": "without an answer, since the thought did not end",
    "num_as_text": "compared as text, since they are no formula that the grader knows",
}
_MAX_ARMS = 8  # in a line
SPACE = "\N{NO-BREAK SPACE}"  # between a symbol and its value, a value and its unit


@dataclass(frozen=True)
class ScoreCell:
    """A score with its 95 % interval, in [0, 1]."""

    score: Interval
    mark: str = ""
    """Comparison with the reference arm; see `differences.mark`."""
    bold: bool = False

    def __str__(self) -> str:
        return f"{percent(self.score)} {self.mark}".strip()


@dataclass(frozen=True)
class IntervalCell:
    """A number with its 95 % interval, as texts."""

    value: str
    low: str
    high: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.value} [{self.low}, {self.high}] {self.mark}".strip()


Cell = str | ScoreCell | IntervalCell


@dataclass(frozen=True)
class Table:
    """Column titles and rows of cells; an empty cell is "-"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text_rows(self) -> list[list[str]]:
        """Return the rows with every cell as text."""
        return [[str(cell) for cell in row] for row in self.rows]

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [list(self.columns), ["-"] * len(self.columns), *self.text_rows()]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score_table(entries: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> Table:
    """Return a row per arm that has a score, best first.

    A last row has, per benchmark, the share of items that occur in the training corpus.
    """
    rows: list[list[Cell]] = [
        [
            arm.name,
            _number(arm.first.lr),
            arm.seeds() or "-",
            *(_score(arm.score(name), differences.mark(arm, name)) for name in benchmarks),
            _number(arm.tokens_per_second(), ",.0f"),
        ]
        for arm in rank_arms(entries, benchmarks[0])
        if arm.num_scored
    ]
    if overlaps:
        shares = [f"{overlaps[n].share:.0%}" if n in overlaps else "-" for n in benchmarks]
        rows.append(["items in corpus", "-", "-", *shares, "-"])
    return Table(["arm", "lr", "seeds", *headings(benchmarks).values(), "tokens/s"], rows)


def detailed_score_table(arms: Sequence[Arm], benchmarks: Sequence[str]) -> Table:
    """Return a row per arm with its objective and mean retained score, best scores in bold."""
    retained = retained_benchmarks(benchmarks)
    bold = {name: differences.best_and_ties(arms, name) for name in benchmarks}
    rows: list[list[Cell]] = [
        [
            arm.name,
            describe_objective(arm.first.objective, arm.first.kl_weight),
            _number(arm.first.lr),
            arm.seeds() or "-",
            *(
                _score(arm.score(name), differences.mark(arm, name), arm.name in bold[name])
                for name in benchmarks
            ),
            *([_score(arm.mean_score(retained))] if len(retained) > 1 else []),
            _number(arm.tokens_per_second(), ",.0f"),
        ]
        for arm in arms
    ]
    means = ["mean of retained"] if len(retained) > 1 else []
    described = ["arm", "objective", "learning rate", "seeds"]
    return Table([*described, *headings(benchmarks).values(), *means, "tokens/s"], rows)


def difference_table(entries: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """Return a row per arm with its differences to the reference arm, in percentage points."""
    rows = []
    for arm in rank_arms(entries, benchmarks[0]):
        stored = arm.first.differences
        if stored:
            cells = [
                differences.format_difference(stored[name]) if name in stored else "-"
                for name in benchmarks
            ]
            rows.append([arm.name, *cells])
    return Table(["arm", *headings(benchmarks).values()], rows)


def other_metrics_table(entries: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """Return pass@k and maj@n per arm, for the benchmarks with several answers per item."""
    metrics = [
        (benchmark, metric)
        for benchmark in benchmarks
        for metric in dict.fromkeys(m for e in entries for m in e.other_metrics(benchmark))
    ]
    arms = rank_arms(entries, benchmarks[0]) if metrics else []
    rows = [
        [arm.name, *(_score(arm.score(benchmark, metric)) for benchmark, metric in metrics)]
        for arm in arms
        if arm.num_scored
    ]
    return Table(["arm", *(f"{benchmark} {metric}" for benchmark, metric in metrics)], rows)


def trial_table(entries: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """Return a row per trial."""
    rows = [
        [
            entry.trial,
            entry.status,
            _number(entry.lr),
            _number(entry.seed),
            *(_score(Arm(entry.arm, (entry,)).score(name)) for name in benchmarks),
            _number(entry.tokens_per_second, ",.0f"),
            _number(entry.tokens, ",.0f"),
            _number(entry.seconds and entry.seconds / 60, ".1f"),
            entry.checkpoint or "-",
        ]
        for entry in entries
    ]
    cost = ["tokens/s", "trained tokens", "minutes"]
    described = ["trial", "status", "learning rate", "seed"]
    return Table([*described, *headings(benchmarks).values(), *cost, "checkpoint"], rows)


def benchmark_table(entries: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """Return a row per benchmark: what it asks, how many items it has, how it is scored."""
    retained, rows = retained_benchmarks(benchmarks), []
    for name in benchmarks:
        score = next(e.scores[name] for e in entries if name in e.scores)
        settings = score["settings"]
        source = settings.get("source", "-")
        rows.append(
            [
                name,
                settings.get("domain", "-"),
                "retained" if name in retained else "to learn",
                str(score["num_examples"]),
                score["metric"],
                f"at most {settings['max_tokens']} tokens" if "max_tokens" in settings else "-",
                source.rpartition("/")[2] if source.endswith(".jsonl") else source,
            ]
        )
    return Table(["benchmark", "domain", "skill", "items", "metric", "answers", "source"], rows)


def incomplete_answers(entries: Sequence[Entry], benchmarks: Sequence[str]) -> list[str]:
    """Return a line per benchmark and cause with the answers per arm that are not complete.

    Such answers usually count as wrong, so a score beside a large number says little.
    """
    lines = []
    titles = headings(benchmarks)
    for benchmark, (key, cause) in product(benchmarks, _INCOMPLETE.items()):
        counts = []
        for arm in rank_arms(entries, benchmark):
            scores = [e.scores[benchmark] for e in arm.entries if benchmark in e.scores]
            count = sum(score["settings"].get(key, 0) for score in scores)
            total = sum(s["num_examples"] * s["settings"].get("num_samples", 1) for s in scores)
            if count:
                counts.append((count / total, f"{arm.name} {count} of {total}"))
        texts = [text for _, text in sorted(counts, key=lambda each: each[0], reverse=True)]
        if more := len(texts) - _MAX_ARMS:
            texts = [*texts[:_MAX_ARMS], *([f"{more} more arms"] if more > 0 else [])]
        if texts:
            lines.append(f"{titles[benchmark]}: answers {cause}: {', '.join(texts)}")
    return lines


def overlap_table(overlaps: Overlaps) -> Table:
    """Return, per benchmark, how many of its items occur in the training corpus."""
    rows = [
        [
            o.benchmark,
            str(o.items),
            f"{len(o.hits)} ({o.share:.0%})",
            ", ".join([*o.hits][:5]) or "-",
        ]
        for o in overlaps.values()
    ]
    return Table(["benchmark", "items", "items in the corpus", "examples"], rows)


def markdown(entries: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> str:
    """Return the content of table.md: the verdict, the legend and the tables."""
    parts = [
        differences.verdict(entries, benchmarks[0]),
        f"{CAPTION}. {differences.legend(entries)}",
        score_table(entries, benchmarks, overlaps).markdown(),
    ]
    compared = difference_table(entries, benchmarks)
    if compared.rows:
        reference = differences.reference_name(entries)
        parts += [f"Difference to {reference} in percentage points", compared.markdown()]
    metrics = other_metrics_table(entries, benchmarks)
    if metrics.rows:
        parts += ["Several answers per item", metrics.markdown()]
    parts += incomplete_answers(entries, benchmarks)
    titles = headings([*overlaps])
    parts += [str(replace(each, benchmark=titles[name])) for name, each in overlaps.items()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def describe_objective(objective: Mapping[str, Any] | None, kl_weight: float = 0) -> str:
    """Return an objective with the settings that matter, "OTR K 256, β -0.1, κ 1.3 + 0.1 KL"."""
    if objective is None:
        return "before training"
    known = stored(dict(objective))
    described = known.describe() if known else str(objective.get("name"))
    return f"{described} + {kl_weight:g} KL" if kl_weight else described


def _score(score: Interval | None, mark: str = "", bold: bool = False) -> Cell:
    return "-" if score is None else ScoreCell(score, mark, bold)


def _number(value: float | None, form: str = "g") -> str:
    return "-" if value is None else format(value, form)
