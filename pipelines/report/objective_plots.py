"""Figures that compare objectives: their weights, and what arms learned from.

Each function returns SVG text, "" if there is nothing to show.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otr.loss.buckets import BUCKETS, EDGES
from otr.loss.objective import Objective
from pipelines.report.leaderboard import BASE, Entry, rank_arms
from pipelines.report.plot_style import (
    BUCKET_COLORS,
    INK,
    PALE,
    ArmStyles,
    end_columns,
    render_svg,
    with_own_dark_colors,
)
from pipelines.report.plots import WIDTH, draw_histories, highlighted_arms, legend

CURVES = (
    ("entropy", "entropy of the predictions (nats)"),
    ("hit_rate", "hit rate (%)"),
    ("kl_to_base", "KL from the base model (nats)"),
    ("val_kl_to_base", "KL from the base model, validation (nats)"),
)
"""Metrics over steps by name, with their titles."""
_SHARES = (
    ("gradient_share", "share of the gradient (%)"),
    ("token_share", "share of the tokens (%)"),
)
_DASHES = {1: ":", 20: "-", 1000: "--"}
_LEAST = 0.07  # a share with room for its number
_TOP = 1.6  # of the weights that are shown
_POINTS = 199


def learned_from(entries: Sequence[Entry], target: str) -> str:
    """Draw the gradient and the tokens of each arm by bucket, and metrics over steps below."""
    arms = [
        arm
        for arm in highlighted_arms(entries, target)
        if arm.name != BASE and any(map(_mean_shares, arm.entries))
    ]
    curves = [c for c in CURVES if any(c[0] in h for e in entries for h in e.history)]
    if not arms and not curves:
        return ""
    styles = ArmStyles(rank_arms(entries, target))
    heights = [0.9 + 0.32 * len(arms)] * bool(arms) + [2.6] * bool(curves)

    def draw(figure: Figure) -> None:
        # A constrained layout would ask for equal margins in both parts.
        parts = iter(figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        if arms:
            part = next(parts)
            left, right = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
            for axes, (key, title) in zip((left, right), _SHARES, strict=True):
                for y, arm in enumerate(reversed(arms)):
                    found = [shares for e in arm.entries if (shares := _mean_shares(e))]
                    _draw_bar(axes, y, [_mean(found, f"{key}/{bucket}") for bucket in BUCKETS])
                axes.set_title(title)
                axes.set_xlim(0, 100)
                axes.grid(visible=False)
            left.set_yticks(range(len(arms)), [arm.name for arm in reversed(arms)])
            legend(part, left)
        if curves:
            part = next(parts)
            panels = part.subplots(1, len(curves), squeeze=False)[0]
            for axes, (key, title) in zip(panels, curves, strict=True):
                draw_histories(axes, entries, key, 100 if key == "hit_rate" else 1, styles)
                axes.set_title(title)
                axes.set_xlabel("step")
            legend(part, panels[0])

    return render_svg(draw, WIDTH, sum(heights) + 0.3)


def weight_curves(objectives: Sequence[Objective]) -> str:
    """Draw each objective's weight on SFT's gradient over the probability of the target.

    The colors change on a dark page, also where the figure is a file of its own.
    """
    from otr.loss.curve import OTHERS, TYPICAL, depends_on_others, weights  # imports torch

    columns = min(3, len(objectives))
    lines = -(-len(objectives) // columns)
    p_P = np.linspace(0, 1, _POINTS + 2)[1:-1].tolist()

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        lowest = 0.0
        for axes, objective in zip(grid.flat, objectives, strict=False):
            style = objective.style or objective.expectation.style
            axes.axhline(1, color=PALE, lw=1.2)
            for others in OTHERS if depends_on_others(objective) else (TYPICAL,):
                weight_P = weights(objective, p_P, others).clip(-_TOP, 2 * _TOP)
                lowest = min(lowest, float(weight_P.min()))
                dashes = _DASHES[others]
                axes.plot(p_P, weight_P, color=style.color if style else INK, ls=dashes, lw=1.8)
            axes.set_title(objective.describe())
        grid[0, 0].set_ylim(1.05 * lowest - 0.05, _TOP)
        grid[0, 0].set_xlim(0, 1)
        end_columns(grid, len(objectives), "p(y), the model's probability of the target")
        for axes in grid[:, 0]:
            axes.set_ylabel("weight")
        if any(map(depends_on_others, objectives)):
            lines_ = [axes.plot([], [], color=INK, ls=_DASHES[n], lw=1.8)[0] for n in OTHERS]
            names = [f"{n:,} other token{'s' * (n > 1)}, equally likely" for n in OTHERS]
            figure.legend(lines_, names, loc="outside lower center", ncols=len(OTHERS))

    return with_own_dark_colors(render_svg(draw, WIDTH, 0.5 + 1.9 * lines))


def bucket_label(number: int) -> str:
    """Return the probabilities of a bucket, as in a legend."""
    edges = (0.0, *EDGES, 1.0)
    if number == 0:
        return f"p(y) < {EDGES[0]:g}"
    return f"{edges[number]:g} to {edges[number + 1]:g}"


def _mean_shares(entry: Entry) -> dict[str, float]:
    """Return a trial's shares, each the mean of all its reports; empty if it has none."""
    keys = [f"{key}/{bucket}" for key, _ in _SHARES for bucket in BUCKETS]
    reports = [h for h in entry.history if all(key in h for key in keys)]
    return {key: _mean(reports, key) for key in keys} if reports else {}


def _mean(found: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(each[key] for each in found) / len(found)


def _draw_bar(axes: Axes, y: int, shares: Sequence[float]) -> None:
    """Draw shares one beside the other, the larger ones with their number."""
    left = 0.0
    for number, (share, color) in enumerate(zip(shares, BUCKET_COLORS, strict=True)):
        axes.barh(y, 100 * share, 0.72, left, color=color, label=bucket_label(number))
        if share >= _LEAST:
            middle = left + 50 * share
            axes.text(middle, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5)
        left += 100 * share
