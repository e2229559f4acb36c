"""The figures of the training data: data.json in a run's directory, and the tables made of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from itertools import chain
from pathlib import Path

from otr.files import write_json
from otr.training.audit import UNREADABLE
from otr.training.corpus import CorpusReport, SourceReport
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig
from pipelines.report.tables import SPACE, Table

FILE = "data.json"
LENGTHS = ("tokens per example", "examples")
"""Column titles of the lengths."""
_MAX_BINS = 12
_MIN_WIDTH = 8  # tokens


@dataclass(frozen=True)
class Bin:
    """The examples of some lengths, in tokens."""

    first: int
    last: int
    examples: int

    def texts(self) -> tuple[str, str]:
        """Return the lengths and the number of examples, see `LENGTHS`."""
        return f"{self.first:,} to {self.last:,}", f"{self.examples:,}"


@dataclass(frozen=True)
class Summary:
    """The sizes of a corpus or of its first records, as data.json stores them."""

    rows: int
    """Records that were read."""
    complete: bool
    """Whether that was the whole corpus."""
    records: int | None
    """Records of the whole corpus; None if they were not counted."""
    sources: dict[str, SourceReport]
    """What each configured path gave."""
    lengths: list[Bin]
    """The examples by length, shortest first, without a gap."""
    rejected: dict[str, int]
    """Records per cause."""
    unused: dict[str, int]
    """Records per field that neither otr nor the chat template uses."""
    remarks: dict[str, int]
    """Records per remark."""
    left_out: dict[str, int]
    """Files that are not read, per split that they belong to."""
    files: dict[str, int] = field(default_factory=dict)
    """Files per remark."""

    @property
    def total(self) -> SourceReport:
        """The sums over the sources."""
        return SourceReport(*map(sum, zip(*map(astuple, self.sources.values()), strict=True)))


def summarize(report: CorpusReport, names: Mapping[str, str] | None = None) -> Summary:
    """Return the figures of an inspected corpus.

    Args:
        report: the corpus.
        names: by path of a source, the name to show instead; by default the path.
    """
    names = names or {}
    return Summary(
        rows=report.rows,
        complete=report.complete,
        records=report.records,
        sources={names.get(path, path): source for path, source in report.sources.items()},
        lengths=histogram(list(chain.from_iterable(report.lengths))),
        rejected=report.rejected,
        unused=report.unused,
        remarks=report.remarks,
        left_out=report.left_out,
        files=report.files,
    )


def summarize_run(run: PreparedRun, config: SweepConfig) -> Summary:
    """Return the figures of a run's corpus; `config` has the paths as they were given."""
    paths = zip(run.config.train.data.paths, config.train.data.paths, strict=True)
    return summarize(run.corpus, dict(paths))


def histogram(lengths: Sequence[int]) -> list[Bin]:
    """Return bins of one width, at most 12, from the shortest to the longest example."""
    width = _MIN_WIDTH
    while (max(lengths) - 1) // width - (min(lengths) - 1) // width >= _MAX_BINS:
        width *= 2
    counts: dict[int, int] = {}
    for length in lengths:
        counts[(length - 1) // width] = counts.get((length - 1) // width, 0) + 1
    return [
        Bin(number * width + 1, (number + 1) * width, counts.get(number, 0))
        for number in range(min(counts), max(counts) + 1)
    ]


def write(summary: Summary, path: Path) -> None:
    """Write data.json."""
    write_json(path, asdict(summary))


def read(path: Path) -> Summary:
    """Read data.json.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    names = {each.name for each in fields(Summary)}
    try:
        stored = {k: v for k, v in json.loads(path.read_text()).items() if k in names}
        sources = {name: SourceReport(**source) for name, source in stored["sources"].items()}
        lengths = [Bin(**each) for each in stored["lengths"]]
        return Summary(**(stored | {"sources": sources, "lengths": lengths}))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is not a data.json of a sweep: {error!r}") from error


def source_table(summary: Summary) -> Table:
    """Return a row per source, and one for their sums if there are several."""
    rows = dict(summary.sources)
    if len(rows) > 1:
        rows["all sources"] = summary.total
    return Table(
        ["source", "records", "rejected", "examples", "tokens", "trained tokens", "of all tokens"],
        [
            [
                name,
                *(f"{count:,}" for count in astuple(source)),
                share(source.tokens, summary.total.tokens),
            ]
            for name, source in rows.items()
        ],
    )


def finding_table(summary: Summary) -> Table:
    """Return a row per cause of rejection, remark, field that is not used, and split not read."""
    rejected = dict(summary.rejected)
    unreadable = rejected.pop(UNREADABLE, 0)
    texts = {
        "records rejected as {}": rejected,
        "files, or rests of files, that are {}": {UNREADABLE: unreadable} if unreadable else {},
        "{}": summary.remarks | summary.files,
        "records with the field {}, used neither by otr nor by the chat template": summary.unused,
        "files of the split {}, which is not read": summary.left_out,
    }
    rows = [
        [text.format(name), f"{count:,}"]
        for text, counts in texts.items()
        for name, count in most_first(counts)
    ]
    return Table(["found in the data", "count"], rows)


def overview(summary: Summary) -> str:
    """Return what was read and what it gave, in a sentence or two."""
    total = summary.total
    gave = (
        f"gave {total.examples:,} examples with {total.tokens:,} tokens, "
        f"{share(total.trained_tokens, total.tokens)} of them trained."
    )
    if summary.complete:
        return f"The {summary.rows:,} records {gave}"
    of = "" if summary.records is None else f" of {summary.records:,}"
    return (
        f"The first {summary.rows:,}{of} records {gave} Only these were looked at before training; "
        "training reads the others too."
    )


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return names and counts, the largest counts first, equal ones by name."""
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def share(part: int, whole: int) -> str:
    """Return a part as a percentage of the whole."""
    return f"{100 * part / whole:.1f}{SPACE}%" if whole else "-"
