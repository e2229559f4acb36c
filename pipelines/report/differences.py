"""Significance tests between the arms of a sweep, and the verdict in words.

Two arms are compared on the items that both answered, over all their seeds
(`evals.statistics.estimates.paired_seeds`). Each arm is compared with one reference arm; these
p-values are corrected for the number of arms (Holm, 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from evals.records import Verdicts
from evals.statistics.estimates import Difference, holm, paired_seeds
from pipelines.report.leaderboard import (
    BASE,
    Arm,
    Entry,
    best_trial,
    group_by_arm,
    heading,
    headings,
    objective_kind,
    percent,
    rank_arms,
    retained_benchmarks,
)

SIGNIFICANCE_LEVEL = 0.05
METHOD = (
    "Paired test on the same items (cluster bootstrap and permutation over items; with several "
    "seeds, the scatter between seeds is included by Welch's t-test); p-values are corrected for "
    "the number of arms by Holm's method"
)
_MOST_NAMES = 4  # arms that a sentence lists


def compare_arms(first: Arm, second: Arm, benchmark: str) -> Difference | None:
    """Return score of `first` minus score of `second`.

    Without the arms' answers, as in a loaded leaderboard.json, this is the stored difference.

    Returns:
        The difference, or None if it is unknown: answers are missing, or the two arms answered
        different items.
    """
    sides = [
        tuple(e.verdicts[benchmark] for e in arm.entries if benchmark in e.verdicts)
        for arm in (first, second)
    ]
    if not any(sides):
        return _stored_difference(first, second, benchmark)
    if not all(sides) or len({each.ids for side in sides for each in side}) > 1:
        return None
    return _paired_test(*sides)


def reference_arm(entries: Sequence[Entry], target: str) -> Arm | None:
    """Return the arm that the others are compared with: the best SFT arm, else the base model.

    Choosing the SFT arm by its score on the target favors SFT, if anything.
    """
    scored = [arm for arm in rank_arms(entries, target) if arm.score(target)]
    sft = [arm for arm in scored if objective_kind(arm) == ("sft", "")]
    base = [arm for arm in scored if arm.name == BASE]
    return next(iter([*sft, *base, *scored]), None)


def with_differences(entries: Sequence[Entry], benchmarks: Sequence[str]) -> list[Entry]:
    """Return the entries with the differences between their arm and the reference arm.

    Args:
        entries: all trials and the base model, with verdicts.
        benchmarks: names of the benchmarks, the target first.
    """
    reference = reference_arm(entries, benchmarks[0])
    if reference is None:
        return list(entries)
    arms = group_by_arm(entries)
    differences: dict[str, dict[str, dict[str, Any]]] = {arm.name: {} for arm in arms}
    for benchmark in benchmarks:
        tests = {
            arm.name: compare_arms(arm, reference, benchmark)
            for arm in arms
            if arm.name != reference.name
        }
        for name, stored in as_stored(tests, reference.name).items():
            differences[name][benchmark] = stored
    return [replace(entry, differences=differences[entry.arm]) for entry in entries]


def as_stored(tests: Mapping[str, Difference | None], against: str) -> dict[str, dict[str, Any]]:
    """Return the tests of arms against one other arm as an `Entry` stores them, by arm.

    The p-values are corrected for the number of tests. Tests that could not be made are left out.
    """
    made = {arm: test for arm, test in tests.items() if test is not None}
    corrected = holm([test.p for test in made.values()])
    return {
        arm: {"against": against, **test._asdict(), "p_holm": p_holm}
        for (arm, test), p_holm in zip(made.items(), corrected, strict=True)
    }


def reference_name(entries: Sequence[Entry]) -> str:
    """Return the name of the arm that the stored differences refer to; "" if there are none."""
    return next((d["against"] for e in entries for d in e.differences.values()), "")


def mark(arm: Arm, benchmark: str) -> str:
    """Return how an arm compares with the reference arm; "" if that is unknown.

    ▲ is significantly better, ▼ significantly worse, ~ not significantly different.
    """
    return direction(arm.first.differences.get(benchmark), "▲", "▼")


def direction(difference: Mapping[str, Any] | None, up: str, down: str) -> str:
    """Return the sign of a stored difference: up, down, ~ if not significant, "" if unknown."""
    if difference is None:
        return ""
    if difference["p_holm"] >= SIGNIFICANCE_LEVEL:
        return "~"
    return up if difference["difference"] > 0 else down


def legend(entries: Sequence[Entry]) -> str:
    """Return the meaning of the marks; "" if there are none."""
    reference = reference_name(entries)
    if not reference:
        return ""
    return (
        f"▲ significantly better than {reference}, ▼ significantly worse "
        f"(p < {SIGNIFICANCE_LEVEL:g}), ~ no significant difference. {METHOD}."
    )


def verdict(entries: Sequence[Entry], target: str) -> str:
    """Return a sentence that names the best arm and says whether its lead is significant.

    The best arm wins if it is significantly better than every other arm, the base model included.
    Since all of these tests must agree, their p-values need no correction for their number.
    """
    best, title = _best_arm(entries, target), heading(target, entries)
    if best is None:
        return f"No trial has a score on {title}."
    trained = [arm for arm in rank_arms(entries, target) if arm.name != BASE]
    scores = [percent(s, " %") for arm in trained if (s := arm.score(target))]
    tests = _tests_of(best, entries, target)
    if not tests:
        return f"{best.name} has {scores[0]} on {title}; there is nothing to compare it with."
    if caveat := _caveat(entries):
        return f"No winner on {title} is named: {caveat}. {best.name} has {scores[0]}."
    ties = [name for name, d in tests.items() if d is not None and not _is_better(d)]
    untested = [name for name, d in tests.items() if d is None]
    if ties and len(set(scores)) == 1 and len(scores) > 1:
        return f"No winner on {title}: every arm has {scores[0]}."
    leads = f"No clear winner on {title}: {best.name} has the highest mean, {scores[0]}, but"
    if ties:
        return f"{leads} the paired test does not distinguish it from {_listed(ties)}."
    if untested:
        names = _listed(untested) if len(untested) <= _MOST_NAMES else f"{len(untested)} arms"
        return f"{leads} its lead over {names} cannot be tested without the answers of both."
    name, closest = min(
        ((name, d) for name, d in tests.items() if d is not None),
        key=lambda pair: pair[1].difference,
    )
    points = f"{100 * closest.difference:.1f} [{100 * closest.low:.0f}, {100 * closest.high:.0f}]"
    return (
        f"{best.name} wins on {title}: {scores[0]}, significantly better than every other arm. "
        f"The closest is {name}, {points} percentage points behind."
    )


def winning_arm(entries: Sequence[Entry], target: str) -> Arm | None:
    """Return the arm that `verdict` says wins, None if there is no clear winner."""
    best = _best_arm(entries, target)
    if best is None or _caveat(entries):
        return None
    tests = _tests_of(best, entries, target).values()
    return best if tests and all(d is not None and _is_better(d) for d in tests) else None


def _caveat(entries: Sequence[Entry]) -> str:
    """Return why the arms can't be compared; "" if they can, or if there is one alone."""
    trained = {entry.arm for entry in entries if entry.arm != BASE}
    return next((e.caveat for e in entries if e.caveat), "") if len(trained) > 1 else ""


def _best_arm(entries: Sequence[Entry], target: str) -> Arm | None:
    """Return the trained arm with the highest mean, None if none has a score."""
    arms = (arm for arm in rank_arms(entries, target) if arm.name != BASE and arm.score(target))
    return next(arms, None)


def _tests_of(arm: Arm, entries: Sequence[Entry], target: str) -> dict[str, Difference | None]:
    """Return the comparison of an arm with each other arm that has a score, the base included."""
    others = (other for other in rank_arms(entries, target) if other.name != arm.name)
    return {other.name: compare_arms(arm, other, target) for other in others if other.score(target)}


def recommendation(entries: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """Return which trial's model to use, or that none is clearly better than the base model.

    Args:
        entries: all trials and the base model.
        benchmarks: names of the benchmarks, the target first.
    """
    target, best = benchmarks[0], best_trial(entries, benchmarks[0])
    titles = headings(benchmarks)
    arms = {arm.name: arm for arm in group_by_arm(entries)}
    if best is None:
        return "There is no trained model to use."
    highest = f"{best.trial}, the best trial of {best.arm}"
    gain = compare_arms(arms[best.arm], arms[BASE], target) if BASE in arms else None
    if gain is None:
        return f"{highest}, has the highest score. It was not compared with the base model."
    if not _is_better(gain):
        return (
            f"No model is clearly better than the base model on {titles[target]}: keep the base "
            f"model, or test with more seeds or items. {highest}, has the highest score of the "
            "trained ones."
        )
    text = f"Use {highest}."
    if winning_arm(entries, target) is None:
        text += " It is significantly better than the base model, but no clear winner."
    forgotten = [
        titles[name]
        for name in retained_benchmarks(benchmarks)
        if (d := compare_arms(arms[BASE], arms[best.arm], name)) is not None and _is_better(d)
    ]
    if forgotten:
        text += f" It has forgotten: significantly worse than base on {_listed(forgotten)}."
    return text


def best_and_ties(arms: Sequence[Arm], benchmark: str) -> set[str]:
    """Return the names of the arms to highlight on a benchmark.

    These are the arm with the highest mean and those not significantly different from it. The set
    is empty if it would hold every arm, or if a difference is unknown.
    """
    scored = [(score.mean, arm) for arm in arms if (score := arm.score(benchmark))]
    if not scored:
        return set()
    best = max(scored, key=lambda pair: pair[0])[1]
    tests = {arm.name: compare_arms(best, arm, benchmark) for _, arm in scored if arm is not best}
    if any(d is None for d in tests.values()) or all(_is_tie(d) for d in tests.values() if d):
        return set()
    return {best.name, *(name for name, d in tests.items() if d is not None and _is_tie(d))}


def format_difference(difference: dict[str, Any]) -> str:
    """Format a stored difference in percentage points, with its interval and corrected p-value."""
    value, low, high = (100 * difference[key] for key in ("difference", "low", "high"))
    return f"{value:+.1f} [{low:+.0f}, {high:+.0f}], p {difference['p_holm']:.2g}"


def _is_tie(difference: Difference) -> bool:
    return difference.p >= SIGNIFICANCE_LEVEL


def _is_better(difference: Difference) -> bool:
    return not _is_tie(difference) and difference.difference > 0


def _stored_difference(first: Arm, second: Arm, benchmark: str) -> Difference | None:
    """Return the difference that the entries store, if one of the arms is the reference."""
    for arm, other, sign in ((first, second, 1), (second, first, -1)):
        stored = arm.first.differences.get(benchmark)
        if stored is not None and stored["against"] == other.name:
            low, high = sorted((sign * stored["low"], sign * stored["high"]))
            return Difference(sign * stored["difference"], low, high, stored["p"])
    return None


@lru_cache(maxsize=8192)
def _paired_test(first: tuple[Verdicts, ...], second: tuple[Verdicts, ...]) -> Difference:
    return paired_seeds(
        [each.means for each in first],
        [each.means for each in second],
        subjects=first[0].subjects,
    )


def _listed(names: Sequence[str]) -> str:
    """Join names to "a, b and c"; only the first few, then the number of the others."""
    shown = list(names[:_MOST_NAMES])
    if len(names) > _MOST_NAMES:
        shown.append(f"{len(names) - _MOST_NAMES} more arms")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
