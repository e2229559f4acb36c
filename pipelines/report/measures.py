"""What a sweep measures besides accuracy: intervals, paired tests and the table.

A small model solves few items, so its accuracy may decide nothing. These measures differ between
models anyway. `pipelines.stages.measure` computes them per item; here the items are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.statistics.estimates import (
    Difference,
    Interval,
    interval,
    interval_over_seeds,
    paired_seeds,
)
from pipelines.report.differences import as_stored, direction, reference_arm
from pipelines.report.leaderboard import Arm, Entry, rank_arms
from pipelines.report.tables import Cell, IntervalCell, Table
from pipelines.stages.measure import (
    CUT_SHARE,
    KL_GENERAL,
    KL_TARGET,
    MEAN_TOKENS,
    NLL,
    TOKEN_ACCURACY,
    ItemValues,
)

CAPTION = "Besides accuracy: mean over seeds [95 % interval]"
PURPOSE = (
    "What the arms differ in even if they solve few items. Below each value is its 95 % interval."
)
EXPLANATION = (
    "NLL per token (in nats) and token accuracy: of the reference answers in the validation data. "
    "A token counts as right if it is the most likely one after the reference so far. Do not judge "
    "by the NLL alone: OTR sharpens the predictions, which may raise the NLL while the accuracy "
    "rises.",
    "KL (in nats per token): from the base model to the arm, along the base model's own answers to "
    "the target and to the other benchmarks. What a model forgets follows it (arXiv:2509.04259).",
    "Answer tokens, and the share of answers cut off at the limit: of the answers to the target.",
)


@dataclass(frozen=True)
class Measure:
    """How a measure is shown."""

    name: str
    """In leaderboard.json and MLflow."""
    title: str
    form: Callable[[float], str]
    bounded: bool = False
    """Whether it lies in [0, 1]."""

    def bounds(self, items: ItemValues) -> bool:
        """Return whether the value of every item lies in [0, 1]."""
        return self.bounded and set(items.counts) == {1}


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


MEASURES = (
    Measure(NLL, "NLL per token", "{:.3f}".format),
    Measure(TOKEN_ACCURACY, "token accuracy, %", _percent, bounded=True),
    Measure(KL_TARGET, "KL, target", "{:#.3g}".format),
    Measure(KL_GENERAL, "KL, general", "{:#.3g}".format),
    Measure(MEAN_TOKENS, "answer tokens", "{:.0f}".format),
    Measure(CUT_SHARE, "cut off, %", _percent, bounded=True),
)


def with_measures(
    entries: Sequence[Entry], found: Mapping[str, Mapping[str, ItemValues]], target: str
) -> list[Entry]:
    """Return the entries with their measures, each with its interval and paired test.

    Every arm is compared with the reference arm of the scores. The p-values of a measure are
    corrected for the number of arms.

    Args:
        entries: all trials and the base model, with scores.
        found: by trial and measure, the values per item.
        target: name of the target benchmark.
    """
    reference = reference_arm(entries, target)
    stored: dict[str, dict[str, Any]] = {entry.trial: {} for entry in entries}
    for measure in MEASURES:
        sides: dict[str, list[ItemValues]] = {}
        for entry in entries:
            if measure.name in found.get(entry.trial, {}):
                items = found[entry.trial][measure.name]
                sides.setdefault(entry.arm, []).append(items)
                value, low, high = interval(items.values, bounded=measure.bounds(items))
                # No measure is negative; the bootstrap of a ratio may pass below zero.
                ends = {"value": value, "low": max(0.0, low), "high": high}
                stored[entry.trial][measure.name] = ends | {"n": len(items.ids)}
        against = sides.pop(reference.name, None) if reference else None
        if reference is None or against is None:
            continue
        tests = {arm: _compare(items, against, measure) for arm, items in sides.items()}
        for arm, difference in as_stored(tests, reference.name).items():
            for entry in entries:
                if entry.arm == arm and measure.name in stored[entry.trial]:
                    stored[entry.trial][measure.name]["difference"] = difference
    return [replace(entry, measures=stored[entry.trial]) for entry in entries]


def _compare(
    items: Sequence[ItemValues], against: Sequence[ItemValues], measure: Measure
) -> Difference | None:
    """Return the difference of two arms; None if they were not measured on the same items."""
    if len({(each.ids, each.counts) for each in [*items, *against]}) > 1:
        return None
    return paired_seeds(
        [each.values for each in items],
        [each.values for each in against],
        bounded=measure.bounds(items[0]),
    )


def of_arm(arm: Arm, measure: Measure) -> Interval | None:
    """Return the mean over the seeds that have the measure, None if none has."""
    found = [e.measures[measure.name] for e in arm.entries if measure.name in e.measures]
    if not found:
        return None
    intervals = [Interval(each["value"], each["low"], each["high"]) for each in found]
    return interval_over_seeds(intervals, found[0]["n"], bounded=measure.bounded)


def mark(arm: Arm, measure: Measure) -> str:
    """Return how an arm compares with the reference arm; "" if that is unknown.

    ↑ is significantly higher, ↓ significantly lower, ~ not significantly different.
    """
    found = (e.measures.get(measure.name, {}).get("difference") for e in arm.entries)
    return direction(next(filter(None, found), None), "↑", "↓")


def measure_table(entries: Sequence[Entry], target: str) -> Table:
    """Return a row per measured arm, in the order of the score table; no rows without measures."""
    shown = [m for m in MEASURES if any(m.name in entry.measures for entry in entries)]
    arms = [arm for arm in rank_arms(entries, target) if any(e.measures for e in arm.entries)]
    rows: list[list[Cell]] = [
        [arm.name, *(_cell(of_arm(arm, each), each, mark(arm, each)) for each in shown)]
        for arm in arms
    ]
    return Table(["arm", *(each.title for each in shown)], rows)


def legend(entries: Sequence[Entry]) -> str:
    """Return the meaning of the marks; "" if there are none."""
    differences = (m.get("difference") for e in entries for m in e.measures.values())
    found = next(filter(None, differences), None)
    if found is None:
        return ""
    return (
        f"↑ significantly higher than {found['against']}, ↓ significantly lower, ~ no significant "
        "difference (the paired test and the correction are those of the scores)."
    )


def markdown(entries: Sequence[Entry], target: str) -> str:
    """Return the table with its legend for table.md; "" if nothing was measured."""
    table = measure_table(entries, target)
    if not table.rows:
        return ""
    return (
        "\n\n".join([f"{CAPTION}. {legend(entries)}".strip(), table.markdown(), *EXPLANATION])
        + "\n"
    )


def _cell(interval: Interval | None, measure: Measure, mark: str) -> Cell:
    if interval is None:
        return "-"
    value, low, high = map(measure.form, interval)
    return IntervalCell(value, low, high, mark)
