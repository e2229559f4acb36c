"""The report of a sweep: report.html, which needs no other file, and its parts.

The parts are leaderboard.json, table.md and figures/*.svg, for use elsewhere.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from otr.files import write_text
from otr.hints import counted
from pipelines.report import (
    answers,
    data,
    differences,
    leaderboard,
    measures,
    objective_plots,
    plots,
    search,
    tables,
)
from pipelines.report.leaderboard import (
    BASE,
    Entry,
    group_by_arm,
    headings,
    rank_arms,
    retained_benchmarks,
)
from pipelines.report.plot_style import dark_css_colors, with_css_colors
from pipelines.report.tables import Cell, IntervalCell, Overlaps, ScoreCell, Table
from pipelines.stages.contamination import LONGEST, SHORTEST

_NARROW = 4  # columns that fit on a phone
_MANY = 12  # findings in the data; a longer list is folded
_SCROLL_HINT = "<p class=hint>Scroll sideways for the rest →</p>"  # shown on narrow screens


@dataclass(frozen=True)
class Figure:
    """A figure with its texts."""

    file: str
    title: str
    caption: str
    svg: str
    """"" if the sweep has nothing to show in the figure."""


def write(
    entries: Sequence[Entry],
    benchmarks: Sequence[str],
    run: Mapping[str, Any],
    directory: Path,
    overlaps: Overlaps,
) -> list[Path]:
    """Write the report and its parts; return their paths.

    Args:
        entries: all trials and the base model, with histories and differences.
        benchmarks: names of the benchmarks, the target first.
        run: content of run.json.
        directory: where to write.
        overlaps: by benchmark, the items that occur in the training corpus.
    """
    drawn = figures(entries, benchmarks, run["config"]["search"]["metric"])
    page, table, folder, board = (
        directory / name for name in ("report.html", "table.md", "figures", "leaderboard.json")
    )
    leaderboard.write(entries, board)
    run = {**run, "finished": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    write_text(page, render(entries, benchmarks, run, drawn, overlaps, directory))
    parts = [
        tables.markdown(entries, benchmarks, overlaps),
        measures.markdown(entries, benchmarks[0]),
    ]
    write_text(table, "\n".join(filter(None, parts)))
    folder.mkdir(exist_ok=True)
    for figure in drawn:
        if figure.svg:
            write_text(folder / figure.file, figure.svg)
    return [page, table, folder, board]


def render(
    entries: Sequence[Entry],
    benchmarks: Sequence[str],
    run: Mapping[str, Any],
    drawn: Sequence[Figure],
    overlaps: Overlaps,
    directory: Path,
) -> str:
    """Return the report as HTML; see `write` for the arguments, `figures` for `drawn`.

    In `directory`, whose files are linked and quoted, nothing is written.
    """
    best = leaderboard.best_trial(entries, benchmarks[0])
    template = Template(files("pipelines.report").joinpath("report.html").read_text())
    return template.substitute(
        name=html.escape(run["name"]),
        dark_colors=dark_css_colors(),
        verdict=html.escape(differences.verdict(entries, benchmarks[0])),
        use=_use(entries, benchmarks, directory),
        facts=_facts(entries, benchmarks, run),
        failures=_failures(entries),
        scores=_scores(entries, benchmarks),
        examples=answers.examples_section(directory, best, benchmarks[0]),
        benchmarks=_benchmarks(entries, benchmarks),
        measures=_measures(entries, benchmarks[0]),
        data=_data(directory / data.FILE),
        search=search.section(directory, html_table),
        overlap=_overlap(overlaps),
        figures="".join(map(_figure, drawn)),
        command=html.escape(run["command"]),
        versions=html.escape(", ".join(f"{k} {v}" for k, v in run["versions"].items())),
        config=html.escape(json.dumps(run["config"], indent=2)),
        trials=html_table(tables.trial_table(entries, benchmarks)),
        files=answers.files_section(directory),
    )


def figures(entries: Sequence[Entry], benchmarks: Sequence[str], metric: str) -> list[Figure]:
    """Draw the figures of a report.

    Args:
        entries: all trials and the base model, with histories.
        benchmarks: names of the benchmarks, the target first.
        metric: validation metric that selects the learning rate of each setting.
    """
    target, retained = benchmarks[0], retained_benchmarks(benchmarks)
    titles = headings(benchmarks)

    def by_setting(file: str, title: str, setting: str, label: str) -> Figure:
        caption = (
            f"Markers: sampled OTR by {label}. Dashed lines: the other objectives, with their "
            f"intervals shaded. Each setting is shown at its learning rate with the best {metric}."
        )
        svg = plots.scores_by_setting(entries, setting, label, benchmarks, metric)
        return Figure(file, title, caption, svg)

    return [
        Figure(
            "scores.svg",
            "Scores by benchmark",
            "Markers are means over the seeds, bars their 95 % intervals, small ticks single "
            "trials. Shown are the best arm of each objective and the best arms of sampled OTR.",
            plots.scores(entries, benchmarks),
        ),
        Figure(
            "target-against-forgetting.svg",
            "Learning against forgetting",
            f"Up is better on {titles[target]}, the skill to learn. Right is less forgotten: the "
            "mean score on skills that the model had before training "
            f"({', '.join(titles[name] for name in retained)}).",
            plots.trade_off(entries, target, retained),
        ),
        by_setting(
            "score-against-k.svg",
            "Effect of the number of samples, K",
            "num_samples",
            "K (samples per token)",
        ),
        by_setting(
            "score-against-the-mismatch-reward.svg",
            "Effect of the mismatch reward, β",
            "mismatch_reward",
            "β (reward of a sample that is not the target token)",
        ),
        Figure(
            "learned-from.svg",
            "What each objective learns from",
            "Top: how much of the gradient, and of the trained tokens, belongs to targets that the "
            "model finds unlikely (red) or likely (blue), by their probability p(y) during "
            "training, averaged over the reports. A token's gradient is measured at the logit of "
            "its target. Below: the entropy of the predictions; the hit rate, which is the share "
            "of OTR's samples that equal the target, and the mean p(y) of other objectives; and "
            "the KL from the base model, where it was measured.",
            objective_plots.learned_from(entries, target),
        ),
        Figure(
            "training.svg",
            "Training curves",
            "One line per trial. Losses of different objectives are not comparable; the other "
            "curves are.",
            plots.curves(entries, target),
        ),
    ]


def html_table(table: Table) -> str:
    """Return a table as HTML, in a box that scrolls sideways if the page is too narrow."""
    head = "".join(f"<th scope=col>{html.escape(title)}</th>" for title in table.columns)
    body = "".join(
        f"<tr><th scope=row>{html.escape(str(first))}</th>{''.join(map(_cell, cells))}</tr>"
        for first, *cells in table.rows
    )
    return (
        f"{_SCROLL_HINT if len(table.columns) > _NARROW else ''}<div class=wide tabindex=0><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, IntervalCell):
        return f"<td class=n>{cell.value} {cell.mark}<small>{cell.low} to {cell.high}</small></td>"
    if isinstance(cell, ScoreCell):
        value, low, high = (100 * each for each in cell.score)
        return (
            f"<td class='{'n best' if cell.bold else 'n'}'>{value:.1f} {cell.mark}"
            f"<small>{low:.0f} to {high:.0f}</small></td>"
        )
    is_number = cell == "-" or cell[:1] in "+-0123456789"
    return f"<td{' class=n' if is_number else ''}>{html.escape(cell)}</td>"


def _facts(entries: Sequence[Entry], benchmarks: Sequence[str], run: Mapping[str, Any]) -> str:
    train = run["config"]["train"]
    trials = [entry for entry in entries if entry.arm != BASE]
    arms = {entry.arm for entry in trials}
    counts = sorted({s["num_examples"] for e in entries for s in e.scores.values()}) or [0]
    items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    commit, _, changed = run["git_commit"].partition("-")
    facts = {
        "base model": train["model"]["path"],
        "training data": ", ".join(train["data"]["paths"]),
        "training": f"{train['max_steps']} steps, each of {train['global_batch_size']} packed rows "
        f"of {train['data']['sequence_length']} tokens",
        "trials": f"{counted(len(trials), 'trial')}, {counted(len(arms), 'arm')}",
        "benchmarks": f"{len(benchmarks)} benchmarks, {items} items each",
        **_cost(trials, train["workers"]),
        "started": run["created"],
        **({"finished": run["finished"]} if "finished" in run else {}),
        "code": f"commit {commit[:12]}{', with local changes' if changed else ''}",
    }
    return "".join(
        f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd></div>"
        for k, v in facts.items()
    )


def _cost(trials: Sequence[Entry], workers: Mapping[str, Any]) -> dict[str, str]:
    """Return the cost of training all trials; nothing if it is not known."""
    seconds = sum(trial.seconds or 0 for trial in trials)
    if not seconds:
        return {}
    device, each = ("GPU", workers["gpus"]) if workers["gpus"] else ("CPU core", workers["cpus"])
    hours = seconds * workers["count"] * each / 3600
    cost = {"training time": f"{seconds / 60:,.1f} minutes, {hours:,.2g} {device} hours"}
    tokens = sum(trial.tokens or 0 for trial in trials)
    return cost | ({"trained tokens": f"{tokens:,.0f}"} if tokens else {})


def _use(entries: Sequence[Entry], benchmarks: Sequence[str], directory: Path) -> str:
    """Return which model to use, with its directory."""
    text = html.escape(differences.recommendation(entries, benchmarks))
    best = leaderboard.best_trial(entries, benchmarks[0])
    if best is None or best.checkpoint is None:
        return text
    link = answers.checkpoint_link(directory, best.checkpoint)
    return f"{text}<br>Checkpoint of {html.escape(best.trial)}: {link}"


def _benchmarks(entries: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    table = html_table(tables.benchmark_table(entries, benchmarks))
    return f"<section><h2>Benchmarks</h2>{table}</section>"


def _failures(entries: Sequence[Entry]) -> str:
    failed = [entry for entry in entries if entry.status == "failed"]
    if not failed:
        return ""
    lines = "".join(
        f"<li><b>{html.escape(e.trial)}</b>: {html.escape(e.error or 'unknown')}</li>"
        for e in failed
    )
    return f"<section class=failed><h2>Failed trials</h2><ul>{lines}</ul></section>"


def _scores(entries: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """Return the score table with its legend, and the longer tables folded."""
    arms = rank_arms(entries, benchmarks[0])
    shown = plots.highlighted_arms(entries, benchmarks[0])
    table = tables.detailed_score_table(shown, benchmarks)
    folded = {
        f"Differences to {differences.reference_name(entries)} in percentage points, with 95 % "
        "interval and corrected p-value": tables.difference_table(entries, benchmarks),
        "Several answers per item": tables.other_metrics_table(entries, benchmarks),
    }
    if len(shown) < len(arms):
        title = f"All {len(arms)} arms (above: the best of each objective and of sampled OTR)"
        folded = {title: tables.detailed_score_table(arms, benchmarks)} | folded
    details = "".join(
        f"<details><summary>{html.escape(title)}</summary>{html_table(each)}</details>"
        for title, each in folded.items()
        if each.rows
    )
    legend = "".join(
        f"<li>{html.escape(line)}</li>" for line in _legend(entries, benchmarks, table)
    )
    return f"{html_table(table)}<ul class=legend>{legend}</ul>{details}"


def _measures(entries: Sequence[Entry], target: str) -> str:
    table = measures.measure_table(entries, target)
    if not table.rows:
        return ""
    lines = filter(None, [measures.legend(entries), *measures.EXPLANATION])
    legend = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return (
        f"<section><h2>Besides accuracy</h2><p>{html.escape(measures.PURPOSE)}</p>"
        f"{html_table(table)}<ul class=legend>{legend}</ul></section>"
    )


def _legend(entries: Sequence[Entry], benchmarks: Sequence[str], table: Table) -> list[str]:
    """Return what the marks and columns of the score table mean, one line each."""
    lines = [differences.legend(entries)]
    if any(isinstance(cell, ScoreCell) and cell.bold for row in table.rows for cell in row):
        lines.append(
            "Bold: the highest score of a column and those not significantly different from it; "
            "no bold if no arm stands out."
        )
    if retained := retained_benchmarks(benchmarks):
        titles = leaderboard.headings(benchmarks)
        lines.append(
            f"{titles[benchmarks[0]]}: the skill to learn. "
            f"{', '.join(titles[name] for name in retained)}: skills that the model had before "
            "training."
        )
    if any(0 < arm.num_scored < len(arm.entries) for arm in group_by_arm(entries)):
        lines.append("Seeds, 1 of 2: the other trials were stopped early or failed.")
    if any(e.objective and e.objective["name"] == "otr" for e in entries):
        lines.append(
            "K: samples per token. β: reward of a sample that is not the target token. κ: "
            "temperature of the sampling."
        )
    lines += [f"{line}." for line in tables.incomplete_answers(entries, benchmarks)]
    return [*filter(None, lines), "Tokens/s: training speed of one trial."]


def _overlap(overlaps: Overlaps) -> str:
    if not overlaps:
        return ""
    return (
        "<section><h2>Overlap with the training corpus</h2><p>An item counts if the corpus has "
        f"{LONGEST} of its words in a row, ignoring case and punctuation; of an item with "
        f"{SHORTEST} to {LONGEST - 1} words, all of them; a shorter item if it is a whole turn. "
        "Texts made from templates share such words without sharing a problem. contamination.json "
        "lists every item.</p>"
        f"{html_table(tables.overlap_table(overlaps))}</section>"
    )


def _data(file: Path) -> str:
    """Return the section with the figures in data.json; "" for a run that has no such file."""
    if not file.is_file():
        return ""
    summary = data.read(file)
    findings = data.finding_table(summary)
    found = html_table(findings) if findings.rows else ""
    if len(findings.rows) > _MANY:
        found = f"<details><summary>Found in the data</summary>{found}</details>"
    legend = "<li>Trained tokens: those that the loss counts, in one pass over the data.</li>"
    if summary.rejected:
        legend += "<li><code>otr data show --rejected all</code> prints rejected records.</li>"
    return (
        f"<section><h2>Training data</h2><p>{html.escape(data.overview(summary))}</p>"
        f"{html_table(data.source_table(summary))}<ul class=legend>{legend}</ul>"
        f"{_bars(summary.lengths)}{found}</section>"
    )


def _bars(lengths: Sequence[data.Bin]) -> str:
    """Return a histogram as a table with a bar in each row."""
    most = max((each.examples for each in lengths), default=0)
    head = "".join(f"<th scope=col>{title}</th>" for title in data.LENGTHS)
    rows = ""
    for each in lengths:
        between, count = each.texts()
        width = 100 * each.examples / most
        bar = f"<div style='width:{width:.1f}%'></div>" if each.examples else ""
        rows += f"<tr><th scope=row>{between}</th><td class=n>{count}</td><td>{bar}</td></tr>"
    return f"<table class=bars><thead><tr>{head}<td></td></tr></thead><tbody>{rows}</tbody></table>"


def _figure(figure: Figure) -> str:
    if not figure.svg:
        return ""
    return (
        f"<section><h2>{figure.title}</h2><p>{html.escape(figure.caption)}</p>{_SCROLL_HINT}"
        f"<figure class=wide tabindex=0>{with_css_colors(figure.svg)}</figure></section>"
    )
