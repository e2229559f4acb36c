"""Colors, markers and fonts of a report's figures, and how a figure becomes SVG text.

The colors are those of Okabe and Ito, chosen for color-blind readers; the markers differ too.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from evals.statistics.estimates import Interval
from otr.loss.objective import Objective, names, stored
from pipelines.report.leaderboard import Arm, objective_kind

PALE = "#c9ced6"  # lines in the background
INK = "#1b1f24"
_PAPER, _AXIS, _GRID = "#ffffff", "#6b7280", "#e5e7eb"
BUCKET_COLORS = ("#e8957a", "#f3c3a5", "#e3e0d8", "#a9cfe3", "#6da9d2")
"""Of unlikely to likely targets; ink is readable on each."""


@dataclass(frozen=True)
class Style:
    """Color and marker of an arm."""

    color: str
    marker: str


_BASE = Style(INK, "*")
FREE_STYLES = (
    Style("#0072b2", "o"),
    Style("#56b4e9", "v"),
    Style("#e69f00", "P"),
    Style("#6e4fa3", "X"),
    Style("#7a6a00", "p"),
    Style("#1b9aaa", "h"),
)
"""Styles for arms and lines whose kind has no style of its own, in order of use."""
_OTHER = Style("#9aa1ab", "o")
_DARK = {
    _PAPER: "#14171b",
    INK: "#e6e9ee",
    _AXIS: "#9aa4b2",
    _GRID: "#2f353d",
    PALE: "#4a515b",
    "#0072b2": "#4aa8e6",
    "#56b4e9": "#8fd0f7",
    "#e69f00": "#f5bd45",
    "#6e4fa3": "#a58add",
    "#7a6a00": "#c9b53a",
    "#1b9aaa": "#4fc6d4",
    "#9aa1ab": "#7c8592",
    **dict(
        zip(BUCKET_COLORS, ("#a3492e", "#80543c", "#4b4a46", "#35617a", "#2873a8"), strict=True)
    ),
}
"""By color of a figure, the color that replaces it on a dark page; see `_dark` for the others."""
_RC = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "DejaVu Sans"],
    "font.size": 9.5,
    "figure.facecolor": _PAPER,
    "axes.facecolor": _PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": _AXIS,
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
    "xtick.color": _AXIS,
    "ytick.color": _AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "otr",
}


class ArmStyles:
    """The style of each arm, the same in every figure of a report.

    The best arm of each kind of objective, and the best few of sampled OTR, have a style of their
    own; all other arms are gray.
    """

    def __init__(self, ranked: Sequence[Arm]) -> None:
        taken: set[tuple[str, str]] = set()
        free = iter(FREE_STYLES)
        self._styles: dict[str, Style] = {}
        for arm in ranked:
            kind = objective_kind(arm)
            own = _own_style(arm)
            if own is not None and kind in taken:
                continue
            taken.add(kind)
            style = own or next(free, None)
            if style is not None:
                self._styles[arm.name] = style

    def __contains__(self, arm: str) -> bool:
        """Return whether the arm has a style of its own."""
        return arm in self._styles

    def __getitem__(self, arm: str) -> Style:
        return self._styles.get(arm, _OTHER)


def _own_style(arm: Arm) -> Style | None:
    """Return the style of an arm's objective or of the base model; None: a free one."""
    if arm.first.objective is None:
        return _BASE
    objective = stored(arm.first.objective)
    own = objective.style if objective and not arm.first.kl_weight else None
    return None if own is None else Style(own.color, own.marker)


def error_bars(scores: Sequence[Interval]) -> list[list[float]]:
    """Return the lengths in % of the error bars below and above each score, for `errorbar`."""
    return [
        [100 * max(0.0, score.mean - score.low) for score in scores],
        [100 * max(0.0, score.high - score.mean) for score in scores],
    ]


def end_columns(grid: Any, count: int, label: str) -> None:
    """Label the last plot of each column of a grid, and hide the plots after the first `count`."""
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    columns = grid.shape[1]
    for axes in grid.flat[max(0, count - columns) : count]:
        axes.set_xlabel(label)
        axes.tick_params(labelbottom=True)


def render_svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Return the SVG text of what `draw` draws on a figure; width and height are in inches."""
    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None})
    text = output.getvalue()
    return text[text.index("<svg") :]


def with_css_colors(svg: str) -> str:
    """Replace the colors of an SVG by CSS variables, so that the page's theme can change them."""
    dark = _dark()
    return re.sub(
        r"(?<=: )#[0-9a-f]{6}",
        lambda match: f"var(--c-{match[0][1:]}, {match[0]})" if match[0] in dark else match[0],
        svg,
    )


def dark_css_colors() -> str:
    """Return the CSS variables of `with_css_colors` for a dark page."""
    return " ".join(f"--c-{light[1:]}: {dark};" for light, dark in _dark().items())


def with_own_dark_colors(svg: str) -> str:
    """Return an SVG for a file of its own, with the colors of a dark page where one is wanted."""
    style = f"@media (prefers-color-scheme: dark) {{ svg {{ {dark_css_colors()} }} }}"
    head, rest = with_css_colors(svg).split("<defs>", 1)
    return f"{head}<defs>\n  <style>{style}</style>{rest}"


def _dark() -> dict[str, str]:
    """Return the color that replaces each color of a figure on a dark page."""
    made = (Objective(name) for name in names())
    forms = (form for each in made for form in each.forms())
    return _DARK | {style.color: style.dark for form in forms if (style := form.style)}
