"""The figures of a report: scores, target against forgetting, training curves.

In: the rows of a leaderboard. Out: SVG text, one figure a function; "" where the sweep has nothing
to show in it. Scores are in %, bars are 95 % intervals over items and seeds.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.leaderboard import BASE, Arm, Entry, Estimate, rank_arms, retained_benchmarks
from pipelines.report.plot_style import Look, reach, svg


def front(rows: Sequence[Entry], target: str) -> list[Arm]:
    """The arms that have a colour: the best of each objective and the best few of sampled OTR."""
    order = rank_arms(rows, target)
    look = Look(order)
    return [arm for arm in order if look.known(arm.name)]


def scores(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """A panel a benchmark, a line an arm: mean over seeds with interval, single trials as dots."""
    look = Look(rank_arms(rows, benchmarks[0]))
    shown = [arm for arm in front(rows, benchmarks[0]) if arm.score(benchmarks[0])]
    if not shown:
        return ""
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

    return svg(draw, 10.3, lines * (0.9 + 0.27 * len(shown)))


def trade_off(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """Target against what is retained, each arm a point."""
    target, retained = benchmarks[0], retained_benchmarks(benchmarks)
    both = [
        (arm, x, y)
        for arm in front(rows, target)
        if (x := arm.retained(retained)) and (y := arm.score(target))
    ]
    if not both:
        return ""
    look = Look(rank_arms(rows, target))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for arm, x, y in both:
            axes.errorbar(
                100 * x.value,
                100 * y.value,
                xerr=reach(x),
                yerr=reach(y),
                fmt=look.marker(arm.name),
                color=look.colour(arm.name),
                ms=11 if arm.name == BASE else 7.5,
                elinewidth=1.3,
                label=arm.name,
            )
        several = f"retained, mean of {len(retained)} benchmarks"
        axes.set_xlabel(f"{several if len(retained) > 1 else retained[0]} (% correct)")
        axes.set_ylabel(f"{target} (% correct)")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return svg(draw, 7.6, 4.4)


def curves(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
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
    look = Look(rank_arms(rows, benchmarks[0]))

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

    return svg(draw, 10.3, 2.9 * -(-len(panels) // 2) + 0.4)


def _point(axes: Axes, estimate: Estimate | None, y: float, look: Look, arm: str) -> None:
    if estimate is not None:
        axes.errorbar(
            100 * estimate.value,
            y,
            xerr=reach(estimate),
            fmt=look.marker(arm),
            color=look.colour(arm),
            ms=10 if arm == BASE else 7,
            elinewidth=1.6,
        )
