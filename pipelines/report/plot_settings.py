"""The figure of a report that shows scores against one setting of the objective.

In: the rows of a leaderboard. Out: SVG text; "" where the setting has a single value. Scores are in
%, bars are 95 % intervals over items and seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from pipelines.report.leaderboard import Arm, Entry, group_by_arm
from pipelines.report.plot_style import SAMPLED, Look, objective_kind, reach, svg

_SYMBOLS = {"num_samples": "K", "mismatch_reward": "β", "temperature": "κ", "reward_scale": "s"}
_DASHES = ("-", ":", "-.", "--")


def against(
    rows: Sequence[Entry], setting: str, label: str, benchmarks: Sequence[str], metric: str
) -> str:
    """Scores against one setting of the sampled OTR objective, other objectives as lines across.

    Of arms that differ in the learning rate alone, the one with the best validation metric counts.
    """
    tuned = at_best_rate(rows, metric)
    sampled = [a for a in tuned if objective_kind(a)[:2] == ("otr", "sampled")]
    if len({a.first.objective[setting] for a in sampled if a.first.objective}) < 2:
        return ""
    others = [a for a in tuned if a not in sampled]
    controls = _controls(others, benchmarks[0])
    series = _series(sampled, setting)
    look = Look(controls)

    def draw(figure: Figure) -> None:
        for place, name in enumerate(benchmarks[:2]):
            axes = figure.add_subplot(1, min(2, len(benchmarks)), place + 1)
            for arm in controls:
                if estimate := arm.score(name):
                    colour, value = look.colour(arm.name), 100 * estimate.value
                    axes.axhline(value, color=colour, lw=1.2, ls="--", label=arm.name)
                    axes.axhspan(
                        100 * estimate.low, 100 * estimate.high, color=colour, alpha=0.08, lw=0
                    )
            for line in series:
                found = [(x, e) for x, arm in line.points if (e := arm.score(name))]
                axes.errorbar(
                    [x for x, _ in found],
                    [100 * e.value for _, e in found],
                    yerr=[[reach(e)[i][0] for _, e in found] for i in (0, 1)],
                    color=line.colour,
                    marker=line.marker,
                    ls=line.dashes,
                    label=line.name,
                    elinewidth=1,
                )
            if setting == "num_samples":
                axes.set_xscale("log", base=2)
                values = sorted({x for line in series for x, _ in line.points})
                axes.set_xticks(values, [str(v) for v in values], minor=False)
                axes.minorticks_off()
            axes.set_title(name)
            axes.set_xlabel(label)
            axes.set_ylabel("correct (%)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    return svg(draw, 10.3, 3.9 + 0.2 * (len(series) // 4))


def at_best_rate(rows: Sequence[Entry], metric: str) -> list[Arm]:
    """Of arms that differ in the learning rate alone, the one with the best validation metric.

    Of trials that went to their end: what was stopped early was measured at another step.
    """
    best: dict[str, tuple[float, Arm]] = {}
    sign = -1 if metric.endswith(("nll", "loss")) else 1
    for arm in group_by_arm(rows):
        ended = [r for r in arm.rows if r.status == "finished" and metric in r.validation]
        values = [sign * r.validation[metric] for r in ended]
        value = sum(values) / len(values) if values else float("-inf")
        key = str(arm.first.objective)
        if key not in best or value > best[key][0]:
            best[key] = (value, arm)
    return [arm for _, arm in best.values()]


def _controls(others: Sequence[Arm], target: str) -> list[Arm]:
    """The base model and of every other kind of objective the arm that is best on the target."""
    best: dict[tuple[str, str], Arm] = {}
    for arm in others:
        score = arm.score(target)
        kind = objective_kind(arm)
        known = best[kind].score(target) if kind in best else None
        if score and (known is None or score.value > known.value):
            best[kind] = arm
    return list(best.values())


@dataclass
class _Line:
    """The arms that share all settings but the one on the axis."""

    name: str
    colour: str
    marker: str
    dashes: str
    points: list[tuple[Any, Arm]] = field(default_factory=list)


def _series(sampled: Sequence[Arm], setting: str) -> list[_Line]:
    """A line for every combination of the other settings; the first gives its colour."""
    found = [(arm, arm.first.objective) for arm in sampled if arm.first.objective]
    values = {key: sorted({o[key] for _, o in found}) for key in _SYMBOLS if key != setting}
    varied = {key: each for key, each in values.items() if len(each) > 1}
    lines: dict[str, _Line] = {}
    for arm, objective in sorted(found, key=lambda pair: pair[1][setting]):
        name = ", ".join(f"{_SYMBOLS[key]} {objective[key]:g}" for key in varied) or "OTR"
        first, *others = [each.index(objective[key]) for key, each in varied.items()] or [0]
        colour, marker = SAMPLED[first % len(SAMPLED)]
        line = lines.setdefault(name, _Line(name, colour, marker, _DASHES[sum(others) % 4]))
        line.points.append((objective[setting], arm))
    return sorted(lines.values(), key=lambda line: (line.colour, line.dashes))
