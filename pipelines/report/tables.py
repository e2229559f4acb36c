"""The outcome of a sweep as a table: for the terminal, in Markdown.

In: rows that have their differences, the benchmarks, and how much of them is in the training
corpus. Out: heads and lines of text; table.md.
"""

from collections.abc import Mapping, Sequence

from pipelines.report import differences
from pipelines.report.leaderboard import CAPTION, Entry, rank_arms
from pipelines.stages.contamination import Overlap

Overlaps = Mapping[str, Overlap]
Table = tuple[list[str], list[list[str]]]


def scores(rows: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> Table:
    """The heads, and a line for each arm that has a score, the best first.

    The last line has, of each benchmark, the share of items that the training corpus overlaps with.
    """
    lines = []
    for arm in rank_arms(rows, benchmarks[0]):
        rate, speed = arm.first.lr, arm.tokens_per_second() or 0
        cells = [
            f"{arm.score(name) or '-'} {differences.mark(arm, name)}".strip() for name in benchmarks
        ]
        figures = [f"{rate:g}" if rate else "-", arm.seeds() or "-", *cells]
        if arm.scored:
            lines.append([arm.name, *figures, f"{speed:,.0f}" if speed else "-"])
    if overlaps:
        shares = [f"{overlaps[n].share:.0%}" if n in overlaps else "-" for n in benchmarks]
        lines.append(["items in corpus", "-", "-", *shares, "-"])
    return ["arm", "lr", "seeds", *benchmarks, "tokens/s"], lines


def against_reference(rows: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """A line for each arm that has differences to the reference arm."""
    lines = []
    for arm in rank_arms(rows, benchmarks[0]):
        found = arm.first.differences
        if found:
            cells = [
                differences.format_difference(found[n]) if n in found else "-" for n in benchmarks
            ]
            lines.append([arm.name, *cells])
    return ["arm", *benchmarks], lines


def further(rows: Sequence[Entry], benchmarks: Sequence[str]) -> Table:
    """pass@k and maj@n of the benchmarks with several samples an item, mean over seeds."""
    names = [
        (benchmark, metric)
        for benchmark in benchmarks
        for metric in dict.fromkeys(m for r in rows for m in r.further(benchmark))
    ]
    lines = []
    for arm in rank_arms(rows, benchmarks[0]) if names else ():
        cells = [str(arm.score(benchmark, metric) or "-") for benchmark, metric in names]
        if arm.scored:
            lines.append([arm.name, *cells])
    return ["arm", *(f"{benchmark} {metric}" for benchmark, metric in names)], lines


def markdown(rows: Sequence[Entry], benchmarks: Sequence[str], overlaps: Overlaps) -> str:
    """The verdict and the tables, with what they show."""
    parts = [differences.verdict(rows, benchmarks[0]), CAPTION + ". " + differences.legend(rows)]
    parts.append(_markdown(*scores(rows, benchmarks, overlaps)))
    every = against_reference(rows, benchmarks)
    if every[1]:
        name = next(d["against"] for r in rows for d in r.differences.values())
        parts += [f"Difference to {name} in percentage points", _markdown(*every)]
    more = further(rows, benchmarks)
    if more[1]:
        parts += ["Several samples an item", _markdown(*more)]
    parts += [str(overlap) for overlap in overlaps.values()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [columns, ["-"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)
