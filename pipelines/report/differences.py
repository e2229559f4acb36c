"""Which arms differ on a benchmark: paired tests on its items, over the seeds of both.

In: arms whose rows have the verdicts of their trials. Out: a `Difference` between two arms; rows
that have theirs to the reference arm, corrected for the number of arms; and what follows, in words.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from evals.records import Verdicts
from evals.statistics.estimates import Difference, holm, paired_seeds
from pipelines.report.leaderboard import BASE, Arm, Entry, group_by_arm, rank_arms

LEVEL = 0.05
METHOD = (
    "Paired test on the same items (cluster bootstrap and permutation over items; several seeds: "
    "their scatter is added, Welch's t), p corrected for the number of arms after Holm"
)


def between(first: Arm, second: Arm, benchmark: str) -> Difference | None:
    """Of the first to the second; None where the answers of one are not there, or to other items.

    See `evals.statistics.estimates.paired_seeds` for the method.
    """
    sides = [
        tuple(r.verdicts[benchmark] for r in arm.rows if benchmark in r.verdicts)
        for arm in (first, second)
    ]
    if not all(sides) or len({each.ids for side in sides for each in side}) > 1:
        return None
    return _tested(*sides)


def reference(rows: Sequence[Entry], target: str) -> Arm | None:
    """What the arms are compared with: SFT at its best on the target, else the base model.

    That SFT may choose among its settings by the score itself favours it, if anything.
    """
    scored = [arm for arm in rank_arms(rows, target) if arm.score(target)]
    plain = [arm for arm in scored if (arm.first.objective or {}).get("name") == "sft"]
    before = [arm for arm in scored if arm.name == BASE]
    return next(iter([*plain, *before, *scored]), None)


def with_differences(rows: Sequence[Entry], benchmarks: Sequence[str]) -> list[Entry]:
    """The rows, each with its arm's differences to the reference arm."""
    against = reference(rows, benchmarks[0])
    if against is None:
        return list(rows)
    others = [arm for arm in group_by_arm(rows) if arm.name != against.name]
    told: dict[str, dict[str, dict[str, Any]]] = {arm.name: {} for arm in group_by_arm(rows)}
    for benchmark in benchmarks:
        found = {arm.name: d for arm in others if (d := between(arm, against, benchmark))}
        corrected = holm([d.p for d in found.values()])
        for (name, difference), p_holm in zip(found.items(), corrected, strict=True):
            words = {"against": against.name, **difference._asdict(), "p_holm": p_holm}
            told[name][benchmark] = words
    return [replace(row, differences=told[row.arm]) for row in rows]


def mark(arm: Arm, benchmark: str) -> str:
    """Whether an arm differs from the reference: ▲ better, ▼ worse, ~ not shown; "" if unknown."""
    difference = arm.first.differences.get(benchmark)
    if difference is None:
        return ""
    if difference["p_holm"] >= LEVEL:
        return "~"
    return "▲" if difference["difference"] > 0 else "▼"


def legend(rows: Sequence[Entry]) -> str:
    """What the marks mean; "" where there are none."""
    names = {d["against"] for row in rows for d in row.differences.values()}
    if not names:
        return ""
    return f"▲ better, ▼ worse than {names.pop()} (p < {LEVEL:g}), ~ no difference shown. {METHOD}."


def verdict(rows: Sequence[Entry], target: str) -> str:
    """One sentence that says which arm did best, and whether that can be told from chance.

    The best wins if the paired test tells it from every other arm, the base model included. As all
    of the tests must say so, none is corrected for their number.
    """
    trained = [a for a in rank_arms(rows, target) if a.name != BASE and a.score(target)]
    if not trained:
        return f"No trial has a score on {target}."
    best = trained[0]
    top = best.score(target)
    others = [*trained[1:], *(a for a in group_by_arm(rows) if a.name == BASE and a.score(target))]
    found = {arm.name: between(best, arm, target) for arm in others}
    ties = [name for name, d in found.items() if d is None or d.p >= LEVEL or d.difference <= 0]
    if not found:
        return f"{best.name} has {top} % on {target}, and there is nothing to compare it with."
    if not ties:
        nearest = _nearest(best, others, target)
        return f"{best.name} wins on {target}: {top} %, better than every other arm ({nearest})."
    if len({str(arm.score(target)) for arm in trained}) == 1 and len(trained) > 1:
        return f"No winner on {target}: every arm has {top} %."
    return (
        f"No clear winner on {target}: {best.name} has the highest mean, {top} %, but the paired "
        f"test on the items does not tell it from {_listed(ties)}."
    )


def tied_with_best(shown: Sequence[Arm], benchmark: str) -> set[str]:
    """The arm with the highest mean, and those that the paired test does not tell from it."""
    scored = [(score.value, arm) for arm in shown if (score := arm.score(benchmark))]
    if not scored:
        return set()
    best = max(scored, key=lambda pair: pair[0])[1]
    found = {arm.name: between(best, arm, benchmark) for _, arm in scored if arm is not best}
    return {best.name, *(name for name, d in found.items() if d is not None and d.p >= LEVEL)}


def format_difference(difference: dict[str, Any]) -> str:
    """In percentage points, with interval and p."""
    d, low, high = (100 * difference[key] for key in ("difference", "low", "high"))
    return f"{d:+.1f} [{low:+.0f}, {high:+.0f}], p {difference['p_holm']:.2g}"


def _nearest(best: Arm, others: Sequence[Arm], target: str) -> str:
    """The smallest of the differences to the best."""
    found = [(d, arm.name) for arm in others if (d := between(best, arm, target))]
    d, name = min(found, key=lambda pair: pair[0].difference)
    low, high = 100 * d.low, 100 * d.high
    return f"the nearest, {name}, by {100 * d.difference:.1f} [{low:.0f}, {high:.0f}] points"


@lru_cache(maxsize=8192)
def _tested(first: tuple[Verdicts, ...], second: tuple[Verdicts, ...]) -> Difference:
    return paired_seeds(
        [each.means for each in first],
        [each.means for each in second],
        subjects=first[0].subjects,
    )


def _listed(names: Sequence[str], most: int = 4) -> str:
    told = list(names[:most])
    if len(names) > most:
        told.append(f"{len(names) - most} more arms")
    return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))
