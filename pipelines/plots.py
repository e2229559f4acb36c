"""The figures of a report.

In: the rows of a leaderboard. Out: SVG text, one figure a function; "" where the sweep has nothing
to show in it. Scores are in %. Bars are 95 % intervals over items and seeds. Colours are those of
Okabe and Ito, which colour-blind readers can tell apart; markers differ too.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.leaderboard import BASE, Arm, Estimate, Row, arms, ranked, retained_benchmarks

_INK, _FAINT, _GRID = "#1b1f24", "#6b7280", "#e5e7eb"
_KINDS = {
    (BASE, ""): (_INK, "*"),
    ("sft", ""): ("#d55e00", "s"),
    ("dft", ""): ("#009e73", "D"),
    ("otr", "expected"): ("#cc79a7", "^"),
}
_SAMPLED = (
    ("#0072b2", "o"),
    ("#56b4e9", "v"),
    ("#e69f00", "P"),
    ("#6e4fa3", "X"),
    ("#7a6a00", "p"),
    ("#1b9aaa", "h"),
)
_OTHER = ("#9aa1ab", "o")
_MOST_ARMS = 20
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "otr",
}


class Look:
    """The colour and marker of each arm, the same in every figure: the best arms have their own."""

    def __init__(self, order: Sequence[Arm]) -> None:
        kinds, sampled = dict(_KINDS), iter(_SAMPLED)
        self._looks: dict[str, tuple[str, str]] = {}
        for arm in order:
            kind = _objective(arm)
            free = kinds.pop(kind, None) if kind in _KINDS else next(sampled, None)
            if free:
                self._looks[arm.name] = free

    def known(self, arm: str) -> bool:
        """Whether the arm has a colour of its own."""
        return arm in self._looks

    def colour(self, arm: str) -> str:
        """A colour; grey for arms without one of their own."""
        return self._looks.get(arm, _OTHER)[0]

    def marker(self, arm: str) -> str:
        """A marker."""
        return self._looks.get(arm, _OTHER)[1]


def scores(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """A panel a benchmark, a line an arm: mean over seeds with interval, single trials as dots."""
    shown = [arm for arm in ranked(rows, benchmarks[0]) if arm.score(benchmarks[0])][:_MOST_ARMS]
    if not shown:
        return ""
    look = Look(ranked(rows, benchmarks[0]))
    columns = min(3, len(benchmarks))
    lines = -(-len(benchmarks) // columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, benchmarks, strict=False):
            for y, arm in enumerate(reversed(shown)):
                for row in arm.rows:
                    if name in row.scores and len(arm.rows) > 1:
                        value = 100 * row.scores[name]["value"]
                        axes.plot(value, y, "|", color=look.colour(arm.name), ms=15, mew=1.2)
                _point(axes, arm.score(name), y, look, arm.name)
            axes.set_title(name)
            axes.set_xlim(-3, 103)
            axes.grid(axis="y", visible=False)
        for axes in list(grid.flat)[len(benchmarks) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(shown)), [arm.name for arm in reversed(shown)])
            axes.set_ylim(-0.6, len(shown) - 0.4)
        for column in range(columns):
            last = max(n for n in range(len(benchmarks)) if n % columns == column)
            grid.flat[last].set_xlabel("correct (%)")
            grid.flat[last].tick_params(labelbottom=True)

    return _svg(draw, 10.3, lines * (0.9 + 0.27 * len(shown)))


def trade_off(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """Target against what is retained, each arm a point."""
    target, retained = benchmarks[0], retained_benchmarks(benchmarks)
    both = [
        (arm, x, y)
        for arm in ranked(rows, target)
        if (x := arm.retained(retained)) and (y := arm.score(target))
    ][:_MOST_ARMS]
    if not both:
        return ""
    look = Look(ranked(rows, target))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for arm, x, y in both:
            axes.errorbar(
                100 * x.value,
                100 * y.value,
                xerr=_reach(x),
                yerr=_reach(y),
                fmt=look.marker(arm.name),
                color=look.colour(arm.name),
                ms=11 if arm.name == BASE else 7.5,
                elinewidth=1.3,
                label=arm.name,
            )
        axes.set_xlabel(f"retained: mean of {len(retained)} benchmarks (% correct)")
        axes.set_ylabel(f"{target} (% correct)")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return _svg(draw, 7.6, 4.4)


def against(
    rows: Sequence[Row], setting: str, label: str, benchmarks: Sequence[str], metric: str
) -> str:
    """Scores against one setting of the sampled OTR objective, other objectives as lines across.

    Of arms that differ in the learning rate alone, the one with the best validation metric counts.
    """
    tuned = at_best_rate(rows, metric)
    sampled = [a for a in tuned if _objective(a)[:2] == ("otr", "sampled")]
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
            for (title, line), (colour, marker) in zip(series.items(), _SAMPLED, strict=False):
                found = [(x, e) for x, arm in line if (e := arm.score(name))]
                axes.errorbar(
                    [x for x, _ in found],
                    [100 * e.value for _, e in found],
                    yerr=[[_reach(e)[i][0] for _, e in found] for i in (0, 1)],
                    color=colour,
                    marker=marker,
                    label=title,
                    elinewidth=1,
                )
            if setting == "num_samples":
                axes.set_xscale("log", base=2)
                values = sorted({x for line in series.values() for x, _ in line})
                axes.set_xticks(values, [str(v) for v in values], minor=False)
                axes.minorticks_off()
            axes.set_title(name)
            axes.set_xlabel(label)
            axes.set_ylabel("correct (%)")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    return _svg(draw, 10.3, 3.9 + 0.2 * (len(series) // 4))


def curves(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    """Loss, NLL, hit rate and validation of every trial over its steps."""
    every = (
        ("loss", "training loss (each objective's own)"),
        ("nll", "training NLL (nats a token)"),
        ("hit_rate", "draws that hit the target (%)"),
        ("val_exact", "validation examples reproduced (%)"),
    )
    panels = [p for p in every if any(p[0] in h for r in rows for h in r.history)]
    if not panels:
        return ""
    look = Look(ranked(rows, benchmarks[0]))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False)
        for axes, (key, title) in zip(grid.flat, panels, strict=False):
            factor = 1 if key in ("loss", "nll") else 100
            for row in rows:
                points = [(h["step"], factor * h[key]) for h in row.history if key in h]
                if points:
                    front = look.known(row.arm)
                    axes.plot(
                        *zip(*points, strict=True),
                        color=look.colour(row.arm) if front else "#c9ced6",
                        marker=look.marker(row.arm) if len(points) < 8 and front else "",
                        ms=4,
                        lw=1.5 if front else 0.7,
                        zorder=3 if front else 2,
                        label=row.arm if front else "other arms",
                    )
            axes.set_title(title)
            axes.set_xlabel("step")
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(unique.values(), unique, loc="outside lower center", ncols=5)

    return _svg(draw, 10.3, 2.9 * -(-len(panels) // 2) + 0.4)


def at_best_rate(rows: Sequence[Row], metric: str) -> list[Arm]:
    """Of arms that differ in the learning rate alone, the one with the best validation metric."""
    best: dict[str, tuple[float, Arm]] = {}
    sign = -1 if metric.endswith(("nll", "loss")) else 1
    for arm in arms(rows):
        values = [sign * r.validation[metric] for r in arm.rows if metric in r.validation]
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
        kind = _objective(arm)
        known = best[kind].score(target) if kind in best else None
        if score and (known is None or score.value > known.value):
            best[kind] = arm
    return list(best.values())


def _objective(arm: Arm) -> tuple[str, str]:
    objective = arm.first.objective
    if objective is None:
        return (BASE, "")
    return objective["name"], objective["estimator"] if objective["name"] == "otr" else ""


def _series(sampled: Sequence[Arm], setting: str) -> dict[str, list[tuple[Any, Arm]]]:
    """Lines of (value of the setting, arm), each with its other settings as the name."""
    symbols = {"num_samples": "K", "mismatch_reward": "β", "temperature": "κ", "reward_scale": "s"}
    varied = {
        key
        for key in symbols
        if key != setting and len({(a.first.objective or {})[key] for a in sampled}) > 1
    }
    lines: dict[str, list[tuple[Any, Arm]]] = {}
    for arm in sampled:
        objective = arm.first.objective or {}
        name = ", ".join(f"{symbols[k]} {objective[k]:g}" for k in symbols if k in varied) or "OTR"
        lines.setdefault(name, []).append((objective[setting], arm))
    return {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items()}


def _point(axes: Axes, estimate: Estimate | None, y: float, look: Look, arm: str) -> None:
    if estimate is not None:
        axes.errorbar(
            100 * estimate.value,
            y,
            xerr=_reach(estimate),
            fmt=look.marker(arm),
            color=look.colour(arm),
            ms=10 if arm == BASE else 7,
            elinewidth=1.6,
        )


def _reach(estimate: Estimate) -> list[list[float]]:
    """Lengths of the bars below and above, in %."""
    return [
        [100 * max(0.0, estimate.value - estimate.low)],
        [100 * max(0.0, estimate.high - estimate.value)],
    ]


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None})
    text = output.getvalue()
    return text[text.index("<svg") :]
