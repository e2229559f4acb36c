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

from pipelines.report import differences, html_tables, leaderboard, plot_settings, plots, tables
from pipelines.report.leaderboard import BASE, Entry, retained_benchmarks
from pipelines.report.tables import Overlaps


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
    rows: Sequence[Entry],
    benchmarks: Sequence[str],
    run: Mapping[str, Any],
    directory: Path,
    overlaps: Overlaps,
) -> list[Path]:
    """Write the report and its parts; returns where they are.

    `overlaps`: of the benchmarks with the training corpus, by name.
    """
    drawn = figures(rows, benchmarks, run["config"]["search"]["metric"])
    page, table, folder = (directory / n for n in ("report.html", "table.md", "figures"))
    board = directory / "leaderboard.json"
    leaderboard.write(rows, board)
    page.write_text(render(rows, benchmarks, run, drawn, overlaps))
    table.write_text(tables.markdown(rows, benchmarks, overlaps))
    folder.mkdir(exist_ok=True)
    for figure in drawn:
        if figure.svg:
            (folder / figure.file).write_text(figure.svg)
    return [page, table, folder, board]


def render(
    rows: Sequence[Entry],
    benchmarks: Sequence[str],
    run: Mapping[str, Any],
    drawn: Sequence[Figure],
    overlaps: Overlaps,
) -> str:
    """The report as HTML.

    Args:
        rows: of all trials and the base model, with histories and differences.
        benchmarks: names of the scores, the target first.
        run: what run.json says: name, command, created, git_commit, versions, config.
        drawn: its figures.
        overlaps: of the benchmarks with the training corpus, by name.
    """
    template = Template(files("pipelines.report").joinpath("report.html").read_text())
    return template.substitute(
        name=html.escape(run["name"]),
        verdict=html.escape(differences.verdict(rows, benchmarks[0])),
        facts=_facts(rows, benchmarks, run),
        legend=html.escape(differences.legend(rows)),
        arms=html_tables.arms(rows, benchmarks),
        corpus=html_tables.corpus(overlaps),
        figures="".join(map(_section, drawn)),
        trials=html_tables.trials(rows, benchmarks),
        failures=html_tables.failures(rows),
        command=html.escape(run["command"]),
        config=html.escape(json.dumps(run["config"], indent=2)),
        versions=html.escape(", ".join(f"{k} {v}" for k, v in run["versions"].items())),
    )


def _facts(rows: Sequence[Entry], benchmarks: Sequence[str], run: Mapping[str, Any]) -> str:
    train = run["config"]["train"]
    trained = [r for r in rows if r.arm != BASE]
    items = {s["num_examples"] for r in rows for s in r.scores.values()}
    facts = {
        "model": train["model"]["path"],
        "data": ", ".join(train["data"]["paths"]),
        "training": f"{train['max_steps']} steps of {train['global_batch_size']} rows of "
        f"{train['data']['sequence_length']} tokens",
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


def figures(rows: Sequence[Entry], benchmarks: Sequence[str], metric: str) -> list[Figure]:
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
