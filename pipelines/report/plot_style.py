"""How the figures of a report look.

In: what to draw, and the arms in their order. Out: SVG text; a colour and a marker for each arm.
Colours are those of Okabe and Ito, which colour-blind readers can tell apart; markers differ too.
"""

import io
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.figure import Figure

from pipelines.report.leaderboard import BASE, Arm, Estimate

_INK, _FAINT, _GRID = "#1b1f24", "#6b7280", "#e5e7eb"
_KINDS = {
    (BASE, ""): (_INK, "*"),
    ("sft", ""): ("#d55e00", "s"),
    ("dft", ""): ("#009e73", "D"),
    ("otr", "expected"): ("#cc79a7", "^"),
}
SAMPLED = (
    ("#0072b2", "o"),
    ("#56b4e9", "v"),
    ("#e69f00", "P"),
    ("#6e4fa3", "X"),
    ("#7a6a00", "p"),
    ("#1b9aaa", "h"),
)
_OTHER = ("#9aa1ab", "o")
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
        kinds, sampled = dict(_KINDS), iter(SAMPLED)
        self._looks: dict[str, tuple[str, str]] = {}
        for arm in order:
            kind = objective_kind(arm)
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


def objective_kind(arm: Arm) -> tuple[str, str]:
    """Of an arm: (name, estimator); the estimator only where the objective has one."""
    objective = arm.first.objective
    if objective is None:
        return (BASE, "")
    return objective["name"], objective["estimator"] if objective["name"] == "otr" else ""


def reach(estimate: Estimate) -> list[list[float]]:
    """Lengths of the bars below and above, in %."""
    return [
        [100 * max(0.0, estimate.value - estimate.low)],
        [100 * max(0.0, estimate.high - estimate.value)],
    ]


def svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """What `draw` draws on a figure of that size in inches, as SVG text."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        output = io.StringIO()
        figure.savefig(output, format="svg", metadata={"Date": None})
    text = output.getvalue()
    return text[text.index("<svg") :]
