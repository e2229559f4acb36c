"""The figures of a report, one function each.

Each returns SVG text, "" if the sweep has nothing to show in it. Scores are in %; bars are 95 %
intervals over items and seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from evals.statistics.estimates import Interval
from pipelines.report.leaderboard import (
    BASE,
    Arm,
    Entry,
    group_by_arm,
    heading,
    headings,
    objective_kind,
    rank_arms,
)
from pipelines.report.plot_style import (
    FREE_STYLES,
    PALE,
    ArmStyles,
    Style,
    end_columns,
    error_bars,
    render_svg,
)
from tuning.settings import ANSWERS, STANDARD_ERROR, lower_is_better

WIDTH = 10.3  # inches of a figure that fills the page
_SYMBOLS = {"num_samples": "K", "mismatch_reward": "β", "temperature": "κ", "reward_scale": "s"}
_DASHES = ("-", ":", "-.", "--")
_CURVES = (
    ("loss", "training loss"),
    ("nll", "training NLL (nats per token)"),
    ("val_exact", "validation examples, exact (%)"),
    (ANSWERS, "answers to the search's benchmark (%)"),
)


def highlighted_arms(entries: Sequence[Entry], target: str) -> list[Arm]:
    """Return the arms with a color of their own, best first; see `ArmStyles`."""
    ranked = rank_arms(entries, target)
    styles = ArmStyles(ranked)
    return [arm for arm in ranked if arm.name in styles]


def scores(entries: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """Draw a panel per benchmark with a line per arm; small ticks are single trials."""
    styles = ArmStyles(rank_arms(entries, benchmarks[0]))
    arms = [arm for arm in highlighted_arms(entries, benchmarks[0]) if arm.score(benchmarks[0])]
    if not arms:
        return ""
    columns = min(3, len(benchmarks))
    lines = -(-len(benchmarks) // columns)

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained", h_pad=0.12)
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes, (name, title) in zip(grid.flat, headings(benchmarks).items(), strict=False):
            for y, arm in enumerate(reversed(arms)):
                style = styles[arm.name]
                for entry in arm.entries if len(arm.entries) > 1 else ():
                    if name in entry.scores:
                        value = 100 * entry.scores[name]["value"]
                        axes.plot(value, y, "|", color=style.color, ms=15, mew=1.2)
                _draw_score(axes, arm, name, y, style)
            axes.set_title(title)
            axes.set_xlim(-3, 103)
            axes.grid(axis="y", visible=False)
        for axes in grid[:, 0]:
            axes.set_yticks(range(len(arms)), [arm.name for arm in reversed(arms)])
            axes.set_ylim(-0.6, len(arms) - 0.4)
        end_columns(grid, len(benchmarks), "correct (%)")

    return render_svg(draw, WIDTH, lines * (0.9 + 0.27 * len(arms)))


def trade_off(entries: Sequence[Entry], target: str, retained: Sequence[str]) -> str:
    """Draw the score on the target against the mean score on the retained benchmarks."""
    points = [
        (arm, x, y)
        for arm in highlighted_arms(entries, target)
        if (x := arm.mean_score(retained)) and (y := arm.score(target))
    ]
    if not points:
        return ""
    styles = ArmStyles(rank_arms(entries, target))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for arm, x, y in points:
            axes.errorbar(
                100 * x.mean,
                100 * y.mean,
                xerr=error_bars([x]),
                yerr=error_bars([y]),
                fmt=styles[arm.name].marker,
                color=styles[arm.name].color,
                ms=11 if arm.name == BASE else 7.5,
                elinewidth=1.3,
                label=arm.name,
            )
        kept = f"mean of {len(retained)} retained benchmarks"
        if len(retained) == 1:
            kept = heading(retained[0], entries)
        axes.set_xlabel(f"{kept} (% correct)")
        axes.set_ylabel(f"{heading(target, entries)} (% correct)")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return render_svg(draw, 7.6, 4.4)


def scores_by_setting(
    entries: Sequence[Entry], setting: str, label: str, benchmarks: Sequence[str], metric: str
) -> str:
    """Draw scores against one setting of sampled OTR, with the other objectives as level lines.

    Args:
        entries: all trials and the base model.
        setting: field of the objective on the horizontal axis.
        label: title of that axis.
        benchmarks: the first two of them get a panel each.
        metric: validation metric that selects among arms that differ only in the learning rate.
    """
    tuned = arms_at_best_rate(entries, metric)
    scored = [arm for arm in tuned if arm.score(benchmarks[0])]
    sampled = [arm for arm in scored if objective_kind(arm) == ("otr", "sampled")]
    if len({a.first.objective[setting] for a in sampled if a.first.objective}) < 2:
        return ""
    controls = _best_per_kind([arm for arm in tuned if arm not in sampled], benchmarks[0])
    series = _series(sampled, setting)
    styles = ArmStyles(controls)

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(benchmarks[:2]), squeeze=False)[0]
        for axes, (name, title) in zip(panels, headings(benchmarks).items(), strict=False):
            for arm in controls:
                if score := arm.score(name):
                    color = styles[arm.name].color
                    axes.axhline(100 * score.mean, color=color, lw=1.2, ls="--", label=arm.name)
                    axes.axhspan(100 * score.low, 100 * score.high, color=color, alpha=0.08, lw=0)
            for line in series:
                points = [(x, score) for x, arm in line.points if (score := arm.score(name))]
                axes.errorbar(
                    [x for x, _ in points],
                    [100 * score.mean for _, score in points],
                    yerr=error_bars([score for _, score in points]),
                    color=line.style.color,
                    marker=line.style.marker,
                    ls=line.dashes,
                    label=line.name,
                    elinewidth=1,
                )
            if setting == "num_samples":
                _log2_ticks(axes, sorted({x for line in series for x, _ in line.points}))
            axes.set_title(title)
            axes.set_xlabel(label)
            axes.set_ylabel("correct (%)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)

    return render_svg(draw, WIDTH, 3.9 + 0.2 * (len(series) // 4))


def arms_at_best_rate(entries: Sequence[Entry], metric: str) -> list[Arm]:
    """Return one arm per objective: the one whose learning rate has the best `metric`.

    Only finished trials count: a stopped trial was validated at an earlier step.
    """
    best: dict[str, tuple[float, Arm]] = {}
    sign = -1 if lower_is_better(metric) else 1
    for arm in group_by_arm(entries):
        finished = [e for e in arm.entries if e.status == "finished" and metric in e.validation]
        values = [sign * entry.validation[metric] for entry in finished]
        value = sum(values) / len(values) if values else float("-inf")
        objective = str((arm.first.objective, arm.first.kl_weight))
        if objective not in best or value > best[objective][0]:
            best[objective] = (value, arm)
    return [arm for _, arm in best.values()]


def curves(entries: Sequence[Entry], target: str) -> str:
    """Draw the training and validation metrics of every trial over its steps."""
    panels = [p for p in _CURVES if any(p[0] in h for e in entries for h in e.history)]
    if not panels:
        return ""
    styles = ArmStyles(rank_arms(entries, target))

    def draw(figure: Figure) -> None:
        columns = 2 if len(panels) == 4 else len(panels)
        grid = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
        for axes, (key, title) in zip(grid.flat, panels, strict=False):
            draw_histories(axes, entries, key, 1 if key in ("loss", "nll") else 100, styles)
            axes.set_title(title)
            axes.set_xlabel("step")
        legend(figure, grid[0, 0])

    return render_svg(draw, WIDTH, 3.3 if len(panels) < 4 else 6.2)


def draw_histories(
    axes: Axes, entries: Sequence[Entry], key: str, factor: float, styles: ArmStyles
) -> None:
    """Draw a metric of every trial over its steps, times a factor; answers with their error."""
    for entry in entries:
        points = [(h["step"], factor * h[key]) for h in entry.history if key in h]
        if points:
            own, style = entry.arm in styles, styles[entry.arm]
            axes.plot(
                *zip(*points, strict=True),
                color=style.color if own else PALE,
                marker=style.marker if own and len(points) < 8 else "",
                ms=4,
                lw=1.5 if own else 0.7,
                zorder=3 if own else 2,
                label=entry.arm if own else "other arms",
            )
        if key == ANSWERS and points and entry.arm in styles:
            _draw_errors(axes, entry, styles[entry.arm].color)


def legend(figure: FigureBase, axes: Axes) -> None:
    """Write what is drawn in a panel below a figure, each name once."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside lower center", ncols=5)


def _draw_errors(axes: Axes, entry: Entry, color: str) -> None:
    """Shade one standard error around a trial's answers."""
    scored = [h for h in entry.history if ANSWERS in h and STANDARD_ERROR in h]
    axes.fill_between(
        [h["step"] for h in scored],
        [100 * (h[ANSWERS] - h[STANDARD_ERROR]) for h in scored],
        [100 * (h[ANSWERS] + h[STANDARD_ERROR]) for h in scored],
        color=color,
        alpha=0.12,
        lw=0,
    )


@dataclass
class _Series:
    """The arms that share all settings but the one on the axis."""

    name: str
    style: Style
    dashes: str
    points: list[tuple[Any, Arm]] = field(default_factory=list)


def _series(sampled: Sequence[Arm], setting: str) -> list[_Series]:
    """Return a series per combination of the other settings; the first of these gives its color."""
    settings = [(arm, arm.first.objective) for arm in sampled if arm.first.objective]
    values = {key: sorted({o[key] for _, o in settings}) for key in _SYMBOLS if key != setting}
    varied = {key: each for key, each in values.items() if len(each) > 1}
    series: dict[str, _Series] = {}
    for arm, objective in sorted(settings, key=lambda pair: pair[1][setting]):
        name = ", ".join(f"{_SYMBOLS[key]} {objective[key]:g}" for key in varied) or "OTR"
        first, *others = [each.index(objective[key]) for key, each in varied.items()] or [0]
        style = FREE_STYLES[first % len(FREE_STYLES)]
        line = series.setdefault(name, _Series(name, style, _DASHES[sum(others) % 4]))
        line.points.append((objective[setting], arm))
    return sorted(series.values(), key=lambda line: (line.style.color, line.dashes))


def _best_per_kind(arms: Sequence[Arm], target: str) -> list[Arm]:
    """Return the arm that is best on the target for each kind of objective, the base included."""
    best: dict[tuple[str, str], tuple[float, Arm]] = {}
    for arm in arms:
        score, kind = arm.score(target), objective_kind(arm)
        if score and (kind not in best or score.mean > best[kind][0]):
            best[kind] = (score.mean, arm)
    return [arm for _, arm in best.values()]


def _draw_score(axes: Axes, arm: Arm, benchmark: str, y: float, style: Style) -> None:
    score: Interval | None = arm.score(benchmark)
    if score is not None:
        axes.errorbar(
            100 * score.mean,
            y,
            xerr=error_bars([score]),
            fmt=style.marker,
            color=style.color,
            ms=10 if arm.name == BASE else 7,
            elinewidth=1.6,
        )


def _log2_ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values], minor=False)
    axes.minorticks_off()
