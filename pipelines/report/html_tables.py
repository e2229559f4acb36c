"""The tables of a report as HTML.

In: rows that have their differences, the benchmarks, and how much of them is in the training
corpus. Out: pieces of HTML, escaped.
"""

import html
from collections.abc import Sequence

from pipelines.report import differences, plots, tables
from pipelines.report.leaderboard import Arm, Entry, Estimate, rank_arms, retained_benchmarks
from pipelines.report.tables import Overlaps
from pipelines.stages.contamination import RULE


def arms(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """The arms: the best of each objective, then all of them, then their differences."""
    every, front = rank_arms(rows, benchmarks[0]), plots.front(rows, benchmarks[0])
    table = _arm_table(front, benchmarks)
    if len(front) == len(every):
        return table + _more(rows, benchmarks)
    title = f"All {len(every)} arms; above are the best of each objective and of sampled OTR"
    table += f"<details><summary>{title}</summary>{_arm_table(every, benchmarks)}</details>"
    return table + _more(rows, benchmarks)


def _more(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """The differences in figures, and the metrics of several samples an item."""
    shown = [
        ("All differences, in percentage points", tables.against_reference(rows, benchmarks)),
        ("Several samples an item", tables.further(rows, benchmarks)),
    ]
    return "".join(
        f"<details><summary>{title}</summary>{_plain_table(heads, lines)}</details>"
        for title, (heads, lines) in shown
        if lines
    )


def corpus(overlaps: Overlaps) -> str:
    """What of the benchmarks is in the training corpus."""
    if not overlaps:
        return ""
    heads = ["benchmark", "items", "of them in the corpus", "for example"]
    lines = [
        [o.benchmark, str(o.items), f"{len(o.hits)} ({o.share:.0%})", ", ".join([*o.hits][:5])]
        for o in overlaps.values()
    ]
    return (
        "<section><h2>Overlap with the training corpus</h2><p>Items of which the corpus has "
        f"{RULE}. Texts that are made from templates share such words without sharing a problem; "
        "contamination.json names every item.</p>"
        f"{_plain_table(heads, lines)}</section>"
    )


def _plain_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = []
    for first, *others in lines:
        cells = "".join(f"<td class=n>{html.escape(cell)}</td>" for cell in others)
        body.append(f"<tr><th scope=row>{html.escape(first)}</th>{cells}</tr>")
    return _table(heads, body)


def _arm_table(shown: Sequence[Arm], benchmarks: Sequence[str]) -> str:
    retained = retained_benchmarks(benchmarks)
    best = {name: differences.tied_with_best(shown, name) for name in benchmarks}
    titles = [*benchmarks, *(["retained, mean"] if len(retained) > 1 else [])]
    heads = ["arm", "objective", "learning rate", "seeds", *titles, "tokens/s"]
    body = []
    for arm in shown:
        cells = [f"<th scope=row>{html.escape(arm.name)}</th>", f"<td>{_settings(arm)}</td>"]
        cells.append(f"<td class=n>{_number(arm.first.lr)}</td>")
        cells.append(f"<td class=n>{arm.seeds()}</td>")
        for name in benchmarks:
            mark = differences.mark(arm, name)
            cells.append(_cell(arm.score(name), mark, bold=arm.name in best[name]))
        if len(retained) > 1:
            cells.append(_cell(arm.retained(retained)))
        cells.append(f"<td class=n>{_number(arm.tokens_per_second(), ',.0f')}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, body)


def _cell(estimate: Estimate | None, mark: str = "", *, bold: bool = False) -> str:
    if estimate is None:
        return "<td class=n>-</td>"
    low, high = 100 * estimate.low, 100 * estimate.high
    kind = "n best" if bold else "n"
    return (
        f"<td class='{kind}'>{100 * estimate.value:.1f} {mark}"
        f"<small>{low:.0f} to {high:.0f}</small></td>"
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


def trials(rows: Sequence[Entry], benchmarks: Sequence[str]) -> str:
    """Every trial on a line."""
    heads = ["trial", "status", "learning rate", "seed", *benchmarks, "tokens/s", "checkpoint"]
    body = []
    for row in rows:
        scores = [row.scores.get(name) for name in benchmarks]
        cells = [f"<th scope=row>{html.escape(row.trial)}</th>", f"<td>{row.status}</td>"]
        cells.append(f"<td class=n>{_number(row.lr)}</td>")
        cells.append(f"<td class=n>{'' if row.seed is None else row.seed}</td>")
        for score in scores:
            estimate = Estimate(score["value"], score["low"], score["high"]) if score else None
            cells.append(_cell(estimate))
        cells.append(f"<td class=n>{_number(row.tokens_per_second, ',.0f')}</td>")
        cells.append(f"<td class=path>{html.escape(row.checkpoint or '')}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _table(heads, body)


def failures(rows: Sequence[Entry]) -> str:
    """What failed, and why."""
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
