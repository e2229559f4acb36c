"""What a sweep leaves to be read: a report, one HTML file that needs nothing else, and its parts.

In: the rows of a leaderboard and what was run. Out: in the run's directory report.html with the
table, the figures, the settings and the command that repeats the run; leaderboard.json, table.md
and figures/*.svg.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pipelines import leaderboard, plot_settings, plots
from pipelines.leaderboard import (
    BASE,
    Arm,
    Estimate,
    Row,
    ranked,
    retained_benchmarks,
    verdict,
)


@dataclass(frozen=True)
class Figure:
    """An SVG with what it shows; an empty one with the reason."""

    title: str
    caption: str
    svg: str
    otherwise: str = "Nothing to show."

    @property
    def file(self) -> str:
        """Its name as a file."""
        return f"{self.title.lower().replace(' ', '-')}.svg"


def write(
    rows: Sequence[Row], benchmarks: Sequence[str], run: Mapping[str, Any], directory: Path
) -> list[Path]:
    """Write the report and its parts; returns where they are."""
    drawn = figures(rows, benchmarks, run["config"]["search"]["metric"])
    page, table, folder = (directory / n for n in ("report.html", "table.md", "figures"))
    board = directory / "leaderboard.json"
    leaderboard.write(rows, board)
    page.write_text(render(rows, benchmarks, run, drawn))
    table.write_text(leaderboard.markdown(rows, benchmarks))
    folder.mkdir(exist_ok=True)
    for figure in drawn:
        if figure.svg:
            (folder / figure.file).write_text(figure.svg)
    return [page, table, folder, board]


def render(
    rows: Sequence[Row],
    benchmarks: Sequence[str],
    run: Mapping[str, Any],
    drawn: Sequence[Figure],
) -> str:
    """The report as HTML.

    Args:
        rows: of all trials and the base model, with their histories.
        benchmarks: names of the scores, the target first.
        run: what run.json says: name, command, created, git_commit, versions, config.
        drawn: its figures.
    """
    template = Template(files("pipelines").joinpath("report.html").read_text())
    return template.substitute(
        name=html.escape(run["name"]),
        verdict=html.escape(verdict(rows, benchmarks[0])),
        facts=_facts(rows, benchmarks, run),
        arms=_arms(rows, benchmarks),
        figures="".join(map(_section, drawn)),
        trials=_trial_table(rows, benchmarks),
        failures=_failures(rows),
        command=html.escape(run["command"]),
        config=html.escape(json.dumps(run["config"], indent=2)),
        versions=html.escape(", ".join(f"{k} {v}" for k, v in run["versions"].items())),
    )


def _facts(rows: Sequence[Row], benchmarks: Sequence[str], run: Mapping[str, Any]) -> str:
    train = run["config"]["train"]
    trained = [r for r in rows if r.arm != BASE]
    items = {s["num_examples"] for r in rows for s in r.scores.values()}
    facts = {
        "model": train["model"]["path"],
        "data": ", ".join(train["data"]["paths"]),
        "training": f"{train['max_steps']} steps of {train['step_rows']} rows of "
        f"{train['data']['row_length']} tokens",
        "trials": f"{len(trained)} in {len({r.arm for r in trained})} arms",
        "benchmarks": f"{len(benchmarks)} of {_span(items)} items",
        "when": run["created"],
        "commit": run["git_commit"][:12],
    }
    return "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>"
        for k, v in facts.items()
    )


def _span(counts: set[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _arms(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    every, front = ranked(rows, benchmarks[0]), plots.front(rows, benchmarks[0])
    table = _arm_table(front, benchmarks)
    if len(front) == len(every):
        return table
    title = f"All {len(every)} arms; above are the best of each objective and of sampled OTR"
    return f"{table}<details><summary>{title}</summary>{_arm_table(every, benchmarks)}</details>"


def _arm_table(shown: Sequence[Arm], benchmarks: Sequence[str]) -> str:
    retained = retained_benchmarks(benchmarks)
    columns: list[list[Estimate | None]] = [
        [arm.score(name) for arm in shown] for name in benchmarks
    ]
    if len(retained) > 1:
        columns.append([arm.retained(retained) for arm in shown])
    titles = [*benchmarks, *(["retained, mean"] if len(retained) > 1 else [])]
    heads = ["arm", "objective", "learning rate", "seeds", *titles, "tokens/s"]
    body = []
    for i, arm in enumerate(shown):
        cells = [f"<th scope=row>{html.escape(arm.name)}</th>", f"<td>{_settings(arm)}</td>"]
        cells.append(f"<td class=n>{_number(arm.first.lr)}</td>")
        cells.append(f"<td class=n>{arm.seeds()}</td>")
        cells += [_cell(column[i], column) for column in columns]
        cells.append(f"<td class=n>{_number(arm.tokens_per_second(), ',.0f')}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, body)


def _cell(estimate: Estimate | None, column: Sequence[Estimate | None]) -> str:
    """Bold where no other arm of the column is better beyond the intervals."""
    if estimate is None:
        return "<td class=n>-</td>"
    best = max((e for e in column if e is not None), key=lambda e: e.value)
    mark = " best" if estimate.overlaps(best) else ""
    low, high = 100 * estimate.low, 100 * estimate.high
    return (
        f"<td class='n{mark}'>{100 * estimate.value:.1f}<small>{low:.0f} to {high:.0f}</small></td>"
    )


def _settings(arm: Arm) -> str:
    objective = arm.first.objective
    if objective is None:
        return "before training"
    if objective["name"] != "otr":
        return html.escape(objective["name"].upper())
    draws = {
        "sampled": f"K&nbsp;{objective['num_samples']}",
        "half": f"K&nbsp;{objective['num_samples']} (misses only)",
        "expected": "in expectation",
    }[objective["estimator"]]
    scale = f", scale&nbsp;{objective['reward_scale']:g}" if objective["reward_scale"] != 1 else ""
    return (
        f"OTR {draws}, β&nbsp;{objective['mismatch_reward']:g}, "
        f"κ&nbsp;{objective['temperature']:g}{scale}"
    )


def figures(rows: Sequence[Row], benchmarks: Sequence[str], metric: str) -> list[Figure]:
    """The figures of a report; `metric` of the validation set chooses the learning rates."""
    target = benchmarks[0]
    retained = ", ".join(retained_benchmarks(benchmarks))
    few = "This sweep has a single value of it, so there is nothing to compare."
    return [
        Figure(
            "Scores",
            "Mean over seeds with its 95 % interval; ticks are single trials.",
            plots.scores(rows, benchmarks),
        ),
        Figure(
            "Target against forgetting",
            f"Up: better on {target}. Right: more retained of what the model could do before "
            f"({retained or 'no benchmark measures it'}).",
            plots.trade_off(rows, benchmarks),
        ),
        Figure(
            "Score against K",
            "Sampled OTR by draws a token; dashed: the other objectives, shaded: their intervals. "
            f"Each setting at the learning rate with the best {metric}.",
            plot_settings.against(rows, "num_samples", "K (draws a token)", benchmarks, metric),
            few,
        ),
        Figure(
            "Score against the mismatch reward",
            "Sampled OTR by β, the reward of a draw that is not the target. "
            f"Each setting at the learning rate with the best {metric}.",
            plot_settings.against(
                rows, "mismatch_reward", "β (mismatch reward)", benchmarks, metric
            ),
            few,
        ),
        Figure(
            "Training",
            "Each trial a line. Losses of different objectives are different quantities; NLL, hit "
            "rate and validation compare.",
            plots.curves(rows, benchmarks),
        ),
    ]


def _section(figure: Figure) -> str:
    body = figure.svg or f"<p class=none>{figure.otherwise}</p>"
    head = f"<h2>{figure.title}</h2><p>{html.escape(figure.caption)}</p>"
    return f"<section>{head}<figure>{body}</figure></section>"


def _trial_table(rows: Sequence[Row], benchmarks: Sequence[str]) -> str:
    heads = ["trial", "status", "learning rate", "seed", *benchmarks, "tokens/s", "checkpoint"]
    body = []
    for row in rows:
        scores = [row.scores.get(name) for name in benchmarks]
        cells = [f"<th scope=row>{html.escape(row.trial)}</th>", f"<td>{row.status}</td>"]
        cells.append(f"<td class=n>{_number(row.lr)}</td>")
        cells.append(f"<td class=n>{'' if row.seed is None else row.seed}</td>")
        for score in scores:
            estimate = Estimate(score["value"], score["low"], score["high"]) if score else None
            cells.append(_cell(estimate, []) if estimate is None else _plain(estimate))
        cells.append(f"<td class=n>{_number(row.tokens_per_second, ',.0f')}</td>")
        cells.append(f"<td class=path>{html.escape(row.checkpoint or '')}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, body)


def _plain(estimate: Estimate) -> str:
    return (
        f"<td class=n>{100 * estimate.value:.1f}"
        f"<small>{100 * estimate.low:.0f} to {100 * estimate.high:.0f}</small></td>"
    )


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.status == "failed"]
    if not failed:
        return ""
    lines = "".join(
        f"<li><b>{html.escape(r.trial)}</b>: {html.escape(r.error or 'unknown')}</li>"
        for r in failed
    )
    return f"<section class=failed><h2>Failed trials</h2><ul>{lines}</ul></section>"


def _table(heads: Sequence[str], body: Sequence[str]) -> str:
    head = "".join(f"<th scope=col>{html.escape(h)}</th>" for h in heads)
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(value: float | None, form: str = "g") -> str:
    return "" if value is None else format(value, form)
