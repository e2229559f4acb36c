"""What scoring writes down: a journal while a benchmark runs, a Parquet file when it is done.

In: the samples of a benchmark as they are finished; in the end all of them with their verdicts.
Out: `<benchmark>.journal`, JSON lines, from which a driver that was killed goes on; and
`<benchmark>.parquet`, a row a sample in the items' order:

    id, sample      the item, and the sample's number from 0
    subject         of the item, or null
    prompt          what was asked; rendered: as the model saw it
    answer          the reference answer
    text            the model's answer, with finish_reason and num_tokens
    correct         the verdict
    extracted       the final answer in the text, "" if there is none; null where nothing extracts
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
    """How often each item of a benchmark was answered rightly: what a paired test compares."""

    ids: tuple[str, ...]
    means: tuple[float, ...]
    """Over the item's samples, in [0, 1]."""
    subjects: tuple[str, ...] = ()
    """Of the items, where the average is over subjects."""


class Journal:
    """The finished samples of one benchmark on one model.

    `identity` says which job they belong to; what a file has of another job is dropped. A line that
    a dying process left unfinished is, too.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], ids: Sequence[str]) -> None:
        self.path, self._ids = path, ids
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"identity": identity}).encode() + b"\n"
        self.finished, size = self._read(head)
        self._file = path.open("r+b" if size else "wb")
        self._file.truncate(size)
        self._file.seek(size)
        if not size:
            self._write(head)

    def add(self, index: int, sample: int, completion: Completion) -> None:
        """Keep a sample; one that timed out is not kept, and so is asked again."""
        if completion.finish_reason != "timeout":
            fields = {"id": self._ids[index], "sample": sample, **dataclasses.asdict(completion)}
            self._write(json.dumps(fields).encode() + b"\n")

    def remove(self) -> None:
        """End it: what it had is kept elsewhere now."""
        self._file.close()
        self.path.unlink()

    def close(self) -> None:
        """End it, to be gone on with."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()  # the kernel has it: it outlives this process

    def _read(self, head: bytes) -> tuple[dict[SampleKey, Completion], int]:
        """The samples of this job, and how many bytes of the file are whole lines of it."""
        finished: dict[SampleKey, Completion] = {}
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines[:1] != [head]:
            return finished, 0
        size, index_of = len(head), {item: index for index, item in enumerate(self._ids)}
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break
            try:
                fields: dict[str, Any] = json.loads(line)
                place = index_of[fields.pop("id")], fields.pop("sample")
                finished[place] = Completion(**fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # torn: whatever follows was written after it
            size += len(line)
        return finished, size


def write_answers(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows as Parquet, whole or not at all."""
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), partial, compression="zstd")


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of such a file.

    Raises:
        ValueError: it is no such file.
    """
    return _table(path, list(SCHEMA.names)).to_pylist()


def read_verdicts(path: Path) -> Verdicts:
    """What such a file says about each item, in order.

    Raises:
        ValueError: it is no such file.
    """
    columns = _table(path, ["id", "subject", "correct"]).to_pydict()
    given: dict[str, list[bool]] = {}
    subjects: dict[str, str | None] = {}
    for item, subject, correct in zip(*columns.values(), strict=True):
        given.setdefault(item, []).append(correct)
        subjects[item] = subject
    means = tuple(sum(verdicts) / len(verdicts) for verdicts in given.values())
    named = tuple(subject for subject in subjects.values() if subject is not None)
    return Verdicts(tuple(given), means, named)


def _table(path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} holds no answers of a benchmark: {reason}") from error
