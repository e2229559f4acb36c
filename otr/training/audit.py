"""Count of a corpus's records, and of those that can't be used.

Each batch of packed rows comes with it as JSON: {"rows": records read, "rejected": {cause: count},
"samples": [{cause, detail, row, place}], "unused": {field: count}, "remarks": {remark: count}}.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from otr.hints import encodable

if TYPE_CHECKING:
    from otr.config import DataConfig
    from otr.data import Tokenized
    from otr.training.corpus import Text

OVER_LONG = "over-long"
MAX_SAMPLES = 5  # rejected records per cause that a batch carries
UNREADABLE = "unreadable"  # cause that counts files, or rests of files, not records


class Audit:
    """Records read and rejected, summed over batches.

    Args:
        max_rejected: largest share of the records that may be rejected.
        skip_bad: whether files that can't be read are counted instead of raising an error.
    """

    def __init__(self, max_rejected: float, skip_bad: bool = False) -> None:
        self.max_rejected, self.skip_bad = max_rejected, skip_bad
        self.records = 0
        self.rejected: Counter[str] = Counter()
        """Count per cause."""
        self.samples: list[dict[str, str]] = []
        self.unused: Counter[str] = Counter()
        """Records per field that neither otr nor the chat template uses."""
        self.remarks: Counter[str] = Counter()
        """Records per remark, see `otr.data.Tokenized`."""

    def add(self, audits: Iterable[str]) -> None:
        """Count the audits of batches.

        Raises:
            ValueError: a file can't be read, and `skip_bad` is off.
        """
        for batch in map(json.loads, audits):
            if UNREADABLE in batch["rejected"] and not self.skip_bad:
                details = [s["detail"] for s in batch["samples"] if s["cause"] == UNREADABLE]
                raise ValueError(details[0])
            self._count(batch)

    def _count(self, batch: Mapping[str, Any]) -> None:
        self.records += batch["rows"]
        self.rejected.update(batch["rejected"])
        self.unused.update(batch["unused"])
        self.remarks.update(batch["remarks"])
        sampled = Counter(sample["cause"] for sample in self.samples)
        for sample in batch["samples"]:
            sampled[sample["cause"]] += 1
            if sampled[sample["cause"]] <= 10 * MAX_SAMPLES:
                self.samples.append(sample)

    def to_json(self) -> str:
        """Return the audit of all that was counted, as one batch."""
        return json.dumps(
            {
                "rows": self.records,
                "rejected": self.rejected,
                "samples": self.samples,
                "unused": self.unused,
                "remarks": self.remarks,
            }
        )

    def check(self) -> None:
        """Check the share of rejected records; files that `skip_bad` leaves out do not count.

        Raises:
            ValueError: too many records were rejected, or no file could be read.
        """
        bad = self.rejected.total() - self.rejected[UNREADABLE]
        if not self.records and self.rejected[UNREADABLE]:
            raise ValueError(f"no file of the corpus can be read; the first: {self._first()}")
        if bad and (bad == self.records or bad > self.max_rejected * self.records):
            causes = ", ".join(f"{count} {cause}" for cause, count in self.rejected.most_common())
            remedy = (
                ": raise --train.data.sequence-length, or give --over-long"
                if self.rejected[OVER_LONG]
                else ""
            )
            allowed = (
                f", more than the allowed {self.max_rejected:.0%} (--train.data.max-rejected)"
                if bad < self.records
                else ""
            )
            raise ValueError(
                f"{bad} of {self.records} records can't be used ({causes}{remedy}){allowed}; the "
                f"first: {self._first()}"
            )

    def _first(self) -> str:
        ordered = sorted(self.samples, key=lambda sample: sample["cause"] == UNREADABLE)
        first = [
            f"{s['place']}{', ' if s['place'] else ''}{s['cause']}, {s['detail']}: {s['row'][:120]}"
            for s in ordered[:1]
        ]
        return "".join(first)


def check_source(config: "DataConfig", path: str, records: int, used: int) -> None:
    """Check that a path gives the training something, however small a share of the corpus it is.

    Args:
        config: says whether all of the records may be rejected.
        path: one of the configured paths.
        records: how many of it were read.
        used: how many examples or rows they gave.

    Raises:
        ValueError: none of the records can be used.
    """
    if records and not used and config.max_rejected < 1 and not config.skip_bad:
        raise ValueError(
            f"none of the records of {path} can be used ({records:,} were read): leave it out, or "
            "see why with `otr data show` and --rejected all"
        )


def batch_audit(texts: "Sequence[Text]", done: "Tokenized") -> str:
    """Return the audit of one batch as JSON.

    Args:
        texts: records and unreadable files of the batch.
        done: what became of them.
    """
    causes = Counter(rejected.cause for rejected in done.rejected)
    sampled: Counter[str] = Counter()
    samples = []
    for one in done.rejected:
        sampled[one.cause] += 1
        if sampled[one.cause] <= MAX_SAMPLES:
            row = one.record if isinstance(one.record, str) else json.dumps(one.record, default=str)
            place = "" if one.cause == UNREADABLE else texts[one.number].place
            told = {"cause": one.cause, "detail": one.detail, "row": row[:2000], "place": place}
            samples.append({name: encodable(text) for name, text in told.items()})
    return json.dumps(
        {
            "rows": len(texts) - causes[UNREADABLE],
            "rejected": causes,
            "samples": samples,
            "unused": done.unused,
            "remarks": done.remarks,
        }
    )
