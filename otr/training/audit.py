"""What was read of a corpus and what of it can't be used.

In: the `audit` column of packed rows, JSON {"rows": read, "rejected": {cause: count}, "samples":
[{cause, detail, row}]} on the first row of a batch and empty on the others. Out: its sums, and a
ValueError where too much was rejected.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SAMPLES = 5  # rejected rows of a cause that are kept of each batch
UNREADABLE = "unreadable"  # counts stretches of files, not rows


class Audit:
    """What was read and what was rejected, summed over the batches of the first pass.

    Args:
        max_rejected: share of the rows that may be.
        skip_bad: files that can't be read are but counted.
    """

    def __init__(self, max_rejected: float, skip_bad: bool = False) -> None:
        self.max_rejected, self.skip_bad = max_rejected, skip_bad
        self.rows = 0
        self.complete = False
        """The pass is over."""
        self.rejected: Counter[str] = Counter()
        self.samples: list[dict[str, str]] = []

    def add(self, audits: Iterable[str]) -> None:
        """Count an `audit` column; later passes are only watched for files that went bad.

        Raises:
            ValueError: a file can't be read, and `skip_bad` is not set.
        """
        for batch in map(json.loads, filter(None, audits)):
            if UNREADABLE in batch["rejected"] and not self.skip_bad:
                details = [s["detail"] for s in batch["samples"] if s["cause"] == UNREADABLE]
                raise ValueError(details[0])
            if not self.complete:
                self._count(batch)

    def _count(self, batch: Mapping[str, Any]) -> None:
        self.rows += batch["rows"]
        self.rejected.update(batch["rejected"])
        kept = Counter(sample["cause"] for sample in self.samples)
        for sample in batch["samples"]:
            kept[sample["cause"]] += 1
            if kept[sample["cause"]] <= 10 * SAMPLES:
                self.samples.append(sample)

    def counts(self) -> dict[str, Any]:
        """What `restore` goes on from, as JSON; the samples are left out."""
        return {"rows": self.rows, "complete": self.complete, "rejected": dict(self.rejected)}

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Take on the counts of an earlier run."""
        self.rows, self.complete = counts["rows"], counts["complete"]
        self.rejected = Counter(counts["rejected"])

    def check(self) -> None:
        """Raise ValueError where too many rows were rejected, or nothing could be read at all.

        Files that can't be read count towards nothing: `data.skip_bad` has allowed them.
        """
        bad = self.rejected.total() - self.rejected[UNREADABLE]
        if not self.rows and self.rejected[UNREADABLE]:
            raise ValueError(f"no file of the corpus can be read; the first: {self._first()}")
        if bad and (bad == self.rows or bad > self.max_rejected * self.rows):
            causes = ", ".join(f"{count} {cause}" for cause, count in self.rejected.most_common())
            raise ValueError(
                f"{bad} of {self.rows} rows can't be used ({causes}), allowed are "
                f"{self.max_rejected:.0%} (data.max_rejected); the first: {self._first()}"
            )

    def _first(self) -> str:
        ordered = sorted(self.samples, key=lambda sample: sample["cause"] == UNREADABLE)
        first = [f"{s['cause']}, {s['detail']}: {s['row'][:120]}" for s in ordered[:1]]
        return "".join(first) or "it came before this run was resumed"


def audit_of(count: int, rejected: Sequence[tuple[Any, str, str]]) -> str:
    """A batch's audit.

    Args:
        count: rows and unreadable files in the batch.
        rejected: row, cause and detail of those that can't be used.
    """
    causes = Counter(cause for _, cause, _ in rejected)
    kept: Counter[str] = Counter()
    samples = []
    for row, cause, detail in rejected:
        kept[cause] += 1
        if kept[cause] <= SAMPLES:
            shown = row if isinstance(row, str) else json.dumps(row, default=str)
            samples.append({"cause": cause, "detail": detail, "row": shown[:2000]})
    return json.dumps({"rows": count - causes[UNREADABLE], "rejected": causes, "samples": samples})
