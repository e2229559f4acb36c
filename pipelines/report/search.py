"""The section of a report about the search before the sweep, from search.json."""

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.plot_style import FREE_STYLES, PALE, render_svg, with_css_colors
from pipelines.report.plots import WIDTH
from pipelines.report.tables import Table
from pipelines.stages.search import read
from tuning.domains import Domain, is_number, parse
from tuning.settings import ANSWERS, lower_is_better

_EDGE = 0.05  # share of the range that counts as its end


def section(directory: Path, table_of: Callable[[Table], str]) -> str:
    """Return the section as HTML; "" for a run without a search.

    Args:
        directory: the run's directory.
        table_of: makes HTML of a `Table`.
    """
    found = read(directory)
    if not found:
        return ""
    metric = found["settings"]["metric"]
    figures = {
        "Each point is a trial that ran to its end; pale ones were stopped early. The ring marks "
        f"the best by {metric}, which the sweep trains.": slices(found),
        f"Best {metric} so far, by the number of trials of each arm.": best_so_far(found),
        "Filled points are those that no other trial of any arm beats in both metrics.": pareto(
            found
        ),
    }
    drawn = "".join(_figure(caption, svg) for caption, svg in figures.items() if svg)
    why = found["plan"]["unfair"]
    lines = [f"Unfair: {why}."] if why else []
    lines += [*at_the_edge(found), *_remarks(found)]
    legend = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    shares = importance_table(found)
    more = ""
    if shares.rows:
        more = (
            "<p>Share of the metric's variance that each setting explains (fANOVA), with the 5 % "
            "and 95 % quantiles over resampled trials.</p>" + table_of(shares)
        )
    return (
        f"<section><h2>Search</h2><p>{html.escape(overview(found))}</p>"
        f"{table_of(best_table(found))}<ul class=legend>{legend}</ul>{drawn}{more}</section>"
    )


def _figure(caption: str, svg: str) -> str:
    shown = f"<figure class=wide tabindex=0>{with_css_colors(svg)}</figure>"
    return f"<p>{html.escape(caption)}</p>{shown}"


def overview(found: Mapping[str, Any]) -> str:
    """Return what was searched, in a sentence or two."""
    settings, trials = found["settings"], found["trials"]
    states = [trial["status"] for trial in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    tokens = sum(trial["tokens"] for trial in trials)
    budget = f" of a budget of {settings['budget']}" if settings["budget"] else ""
    metrics = [*filter(None, [settings["metric"], settings["retain"]])]
    by = " and ".join(metrics)
    measured = ["validation data"] if any(name.startswith("val_") for name in metrics) else []
    measured += [settings["benchmark"]] if ANSWERS in metrics else []
    on = f", on {' and '.join(measured)}" if measured else ""
    return (
        f"{len(trials)} trials ({counts}){budget}, {tokens / 1e6:,.3g} M tokens; "
        f"{settings['sampler']} by {by}{on}, with seed {found['plan']['seed']}. "
        "The sweep trains the best setting of each arm again, with other seeds: its scores are not "
        "those by which the setting was chosen."
    )


def best_table(found: Mapping[str, Any]) -> Table:
    """Return the best setting of each arm."""
    metric = found["settings"]["metric"]
    by_name = {trial["trial"]: trial for trial in found["trials"]}
    rows: list[list[Any]] = []
    for arm in found["arms"]:
        own = [trial for trial in found["trials"] if trial["arm"] == arm]
        best = found["best"].get(arm)
        value = by_name.get(best["trial"], {}).get("values", {}).get(metric) if best else None
        setting = ", ".join(f"{k} {_short(v)}" for k, v in best["values"].items()) if best else "-"
        rows.append([arm, setting, "-" if value is None else f"{value:.4g}", str(len(own))])
    return Table(("arm", "best setting", metric, "trials"), rows)


def importance_table(found: Mapping[str, Any]) -> Table:
    """Return the importance of each setting by arm."""
    rows = [
        [arm, key, f"{100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"]
        for arm, shares in found.get("importance", {}).items()
        for key, (value, low, high) in shares.items()
    ]
    return Table(("arm", "setting", "importance"), rows)


def at_the_edge(found: Mapping[str, Any]) -> list[str]:
    """Return a line per best value that lies at an end of what was searched."""
    lines = []
    for arm, best in found["best"].items():
        for key, value in best["values"].items():
            domain = parse(key, found["arms"][arm][key])
            if domain.function == "choice" and not all(map(is_number, domain.arguments)):
                continue
            place = _place(domain, value)
            if not _EDGE < place < 1 - _EDGE:
                lines.append(
                    f"{arm}: the best {key}, {_short(value)}, is at the end of {domain.text}: a "
                    "better one may lie beyond."
                )
    return lines


def slices(found: Mapping[str, Any]) -> str:
    """Draw the metric against each setting: a row of panels per arm."""
    metric = found["settings"]["metric"]
    arms = {arm: space for arm, space in found["arms"].items() if space}
    keys = list(dict.fromkeys(key for space in arms.values() for key in space))
    if not any(_points(found, arm) for arm in arms):
        return ""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(arms), len(keys), squeeze=False, sharey=True)
        for row, (arm, space) in enumerate(arms.items()):
            style = FREE_STYLES[row % len(FREE_STYLES)]
            best = found["best"].get(arm, {}).get("trial")
            for axes, key in zip(grid[row], keys, strict=True):
                if key not in space:
                    axes.set_visible(False)
                    continue
                domain = parse(key, space[key])
                for trial in _points(found, arm):
                    over = trial["status"] == "finished"
                    x = _position(domain, trial["overrides"][key])
                    y = trial["values"][metric]
                    color = style.color if over else PALE
                    axes.plot(x, y, style.marker, color=color, ms=6, alpha=0.85, mew=0)
                    if trial["trial"] == best:
                        axes.plot(x, y, "o", mfc="none", mec=style.color, ms=13, mew=1.4)
                _scale(axes, domain)
                axes.set_title(f"{arm}: {key}" if len(keys) > 1 else arm)
            first = next(i for i, key in enumerate(keys) if key in space)
            grid[row][first].set_ylabel(metric)
            grid[row][first].tick_params(labelleft=True)

    return render_svg(draw, min(WIDTH, 3.6 * len(keys) + 1), 2.5 * len(arms) + 0.2)


def best_so_far(found: Mapping[str, Any]) -> str:
    """Draw the best value of each arm against its number of trials."""
    metric = found["settings"]["metric"]
    better = min if lower_is_better(metric) else max
    lines = {}
    for arm in found["arms"]:
        values = [t["values"][metric] for t in _points(found, arm) if t["status"] == "finished"]
        if values:
            lines[arm] = [better(values[: i + 1]) for i in range(len(values))]
    if not lines:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for style, (arm, values) in zip(FREE_STYLES * 9, lines.items(), strict=False):
            x = range(1, len(values) + 1)
            marker = style.marker if len(values) < 30 else ""
            axes.step(x, values, where="post", color=style.color, marker=marker, ms=5, label=arm)
        axes.set_xlabel("trials of the arm")
        axes.set_ylabel(f"best {metric} so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return render_svg(draw, 7.6, 3.4)


def pareto(found: Mapping[str, Any]) -> str:
    """Draw the two metrics of the search against each other; "" if it has one."""
    first, second = found["settings"]["metric"], found["settings"]["retain"]
    points = [t for t in found["trials"] if second and t["values"].get(second) is not None]
    points = [t for t in points if t["values"].get(first) is not None and t["status"] == "finished"]
    if not points:
        return ""
    front = {trial["trial"] for trial in pareto_front(points, (first, second))}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for style, arm in zip(FREE_STYLES * 9, found["arms"], strict=False):
            for trial in (t for t in points if t["arm"] == arm):
                fill = style.color if trial["trial"] in front else "none"
                x, y = trial["values"][second], trial["values"][first]
                axes.plot(x, y, style.marker, mfc=fill, mec=style.color, ms=7)
            axes.plot([], [], style.marker, color=style.color, ms=7, label=arm)
        axes.set_xlabel(f"{second} ({_direction(second)} is better)")
        axes.set_ylabel(f"{first} ({_direction(first)} is better)")
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))

    return render_svg(draw, 7.6, 4.2)


def pareto_front(
    trials: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> list[Mapping[str, Any]]:
    """Return the trials that no other one beats: as good in every metric, and better in one."""
    signs = [1 if lower_is_better(metric) else -1 for metric in metrics]
    costs = [[s * t["values"][m] for s, m in zip(signs, metrics, strict=True)] for t in trials]

    def beaten(cost: list[float]) -> bool:
        return any(
            other != cost and all(a <= b for a, b in zip(other, cost, strict=True))
            for other in costs
        )

    return [trial for trial, cost in zip(trials, costs, strict=True) if not beaten(cost)]


def _remarks(found: Mapping[str, Any]) -> list[str]:
    """Return what the trials say about the reward scale under AdamW."""
    key = "objective.reward_scale"
    if not any(key in space for space in found["arms"].values()):
        return []
    return [
        "reward_scale multiplies every gradient. AdamW divides by the gradient's size, so what is "
        "left of it is its effect on the clipping (optim.max_grad_norm) and on optim.eps."
    ]


def _points(found: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    metric = found["settings"]["metric"]
    own = (trial for trial in found["trials"] if trial["arm"] == arm)
    return [t for t in own if t["values"].get(metric) is not None and t["status"] != "failed"]


def _position(domain: Domain, value: Any) -> float:
    """Return where a value stands on the axis: the values of a choice are evenly spaced."""
    return domain.arguments.index(value) if domain.function == "choice" else value


def _place(domain: Domain, value: Any) -> float:
    """Return where a value lies between the ends of its domain, 0 to 1."""
    if domain.function == "choice":
        ordered = sorted(domain.arguments)
        return ordered.index(value) / (len(ordered) - 1)
    low, high = domain.arguments[:2]
    if domain.is_log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _scale(axes: Any, domain: Domain) -> None:
    if domain.function == "choice":
        axes.set_xticks(range(len(domain.arguments)), [_short(v) for v in domain.arguments])
        axes.set_xlim(-0.5, len(domain.arguments) - 0.5)
    elif domain.is_log:
        axes.set_xscale("log")
        low, high = domain.arguments
        axes.set_xlim(low * 0.85, high / 0.85)


def _direction(metric: str) -> str:
    return "lower" if lower_is_better(metric) else "higher"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)
