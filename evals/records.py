"""Files that scoring writes: a journal while a benchmark runs, a Parquet file when it is complete.

`<benchmark>.journal` has JSON lines, from which an interrupted run resumes. `<benchmark>.parquet`
has one row per sample, in the order of the items:

    id, sample      id of the item; number of the sample, from 0
    subject         subject of the item, or null
    prompt          the item's own text; rendered: the same after the chat template
    answer          the reference answer
    text            the model's answer; finish_reason, num_tokens: see `Completion`
    correct         the verdict
    extracted       the final answer found in the text, "" if none; null if the benchmark has no
                    rule for it
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.files import replacing
from evals.serving.requests import Completion, SampleKey

_TEXTS = ("id", "subject", "prompt", "rendered", "answer", "text", "finish_reason", "extracted")
SCHEMA = pa.schema(
    {
        **dict.fromkeys(_TEXTS, pa.string()),
        "sample": pa.int32(),
        "num_tokens": pa.int32(),
        "correct": pa.bool_(),
    }
)


@dataclass(frozen=True)
class Verdicts:
    """Share of right answers per item, for paired tests.

    Attributes:
        ids: ids of the items.
        means: share of each item's samples that are right, in [0, 1].
        subjects: subjects of the items; empty if they have none.
    """

    ids: tuple[str, ...]
    means: tuple[float, ...]
    subjects: tuple[str, ...] = ()


class Journal:
    """The finished samples of one job, stored as they arrive."""

    def __init__(self, path: Path, generation: Mapping[str, Any], ids: Sequence[str]) -> None:
        """Open a journal and read the samples that it holds.

        Lines of other answers are dropped, and so is a line that an interruption left
        incomplete, with all that follow it.

        Args:
            path: the file; created if it does not exist.
            generation: what the answers depend on; see `evals.jobs.Job`.
            ids: ids of the job's items, in order.
        """
        self.path, self._ids = path, ids
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"generation": generation}).encode() + b"\n"
        self.finished: dict[SampleKey, Completion] = {}
        size = self._read(head)
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write(head)

    def add(self, key: SampleKey, completion: Completion) -> None:
        """Store a sample, except one that timed out: a resumed run generates it again."""
        if completion.finish_reason != "timeout":
            sample = {"id": self._ids[key.item], "sample": key.sample}
            fields = sample | dataclasses.asdict(completion)
            self._write(json.dumps(fields).encode() + b"\n")
            self.finished[key] = completion

    def close(self) -> None:
        """Close the file, so that it can be opened again."""
        self._file.close()

    def delete(self) -> None:
        """Close and delete the file, once its samples are stored elsewhere."""
        self.close()
        self.path.unlink()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()  # hands it to the kernel: it survives the end of this process

    def _read(self, head: bytes) -> int:
        """Read the samples into `finished`; return the size in bytes of the valid lines."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines[:1] != [head]:
            return 0
        size, index_of = len(head), {item: index for index, item in enumerate(self._ids)}
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break
            try:
                fields: dict[str, Any] = json.loads(line)
                key = SampleKey(index_of[fields.pop("id")], fields.pop("sample"))
                self.finished[key] = Completion(**fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            size += len(line)
        return size


def write_answers(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of `SCHEMA` as Parquet, atomically."""
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), partial, compression="zstd")


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Read the rows that `write_answers` wrote.

    Raises:
        ValueError: the file is missing or not of that kind.
    """
    return _read_table(path, list(SCHEMA.names)).to_pylist()


def read_verdicts(path: Path) -> Verdicts:
    """Read the verdicts that `write_answers` wrote, one mean per item, in order.

    Raises:
        ValueError: the file is missing or not of that kind.
    """
    columns = _read_table(path, ["id", "subject", "correct"]).to_pydict()
    correct: dict[str, list[bool]] = {}
    subjects: dict[str, str | None] = {}
    for item, subject, verdict in zip(*columns.values(), strict=True):
        correct.setdefault(item, []).append(verdict)
        subjects[item] = subject
    means = tuple(sum(verdicts) / len(verdicts) for verdicts in correct.values())
    named = tuple(subject for subject in subjects.values() if subject is not None)
    return Verdicts(tuple(correct), means, named)


def _read_table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} holds no answers of a benchmark: {reason}") from error
