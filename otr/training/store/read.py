"""Reading a packed store: memory-mapped rows by their number.

Shapes: N rows, S tokens per row.
"""

import fcntl
import os
import zlib
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from otr import files
from otr.training.audit import Audit
from otr.training.store.layout import INDEX, Index, index_from, row_dtype

COLUMNS = ("input_ids", "loss_mask", "segment_ids")


class PackedStore:
    """A complete store on this host.

    Args:
        directory: of the store.

    Raises:
        ValueError: it is of another format.
        OSError: it is incomplete or can't be read.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        text = (self.directory / INDEX).read_text(encoding="utf-8")
        self.index: Index = index_from(text, str(directory))

    def audit(self) -> Audit:
        """Return the count of the corpus's records, and of those that can't be used."""
        found = Audit(1.0, skip_bad=True)
        found.add(part.audit for part in self.index.parts)
        return found

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Return packed rows as columns: token ids and segments int32, targets bool, [N, S] each.

        Args:
            numbers: [N], from 0 to the number of rows.

        Raises:
            ValueError: a row is not what was written.
        """
        parts = np.searchsorted(self._ends, numbers, side="right")
        rows = np.empty(len(numbers), row_dtype(self.index.sequence_length))
        for place, (part, number) in enumerate(zip(parts, numbers, strict=True)):
            inside = number - (self._ends[part - 1] if part else 0)
            rows[place] = self._maps[part][inside]
            self._check(rows[place], self.index.parts[part].name, int(inside))
        return {
            "input_ids": rows["input_ids"].astype(np.int32),
            "loss_mask": rows["loss_mask"].astype(bool),
            "segment_ids": rows["segment_ids"].astype(np.int32),
        }

    def _check(self, row: np.ndarray, part: str, number: int) -> None:
        if checksum(row) != row["checksum"]:
            raise ValueError(
                f"row {number} of {self.directory / part}.rows is damaged: remove the directory, "
                "and the corpus is packed again"
            )

    @cached_property
    def _ends(self) -> np.ndarray:
        """Number of the row after the last one of each part."""
        return np.array(list(accumulate(part.rows for part in self.index.parts)), np.int64)

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        dtype = row_dtype(self.index.sequence_length)
        return [
            np.memmap(self.directory / f"{part.name}.rows", dtype, "r", shape=(part.rows,))
            if part.rows
            else np.empty(0, dtype)
            for part in self.index.parts
        ]


def local_copy(path: str) -> Path:
    """Return a store's directory on this host; copy a store of an object store to its cache.

    The cache is `OTR_CACHE`, by default ``~/.cache/otr/packed``. One process per host copies.

    Args:
        path: of a complete store, a path or URI.
    """
    fs, inner = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        return Path(inner)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.environ.get("OTR_CACHE") or f"{cache}/otr/packed").expanduser()
    copy = folder / inner.rstrip("/").rpartition("/")[2]
    copy.mkdir(parents=True, exist_ok=True)
    with (copy / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = [name.rpartition("/")[2] for name in fs.ls(inner, detail=False)]
        for name in sorted(names, key=lambda each: each == INDEX):  # the index makes it complete
            if name.endswith((".rows", ".npy", INDEX)) and not (copy / name).exists():
                fs.get_file(f"{inner}/{name}", str(copy / f".{name}"))
                files.publish(copy / f".{name}", copy / name)
    return copy


def checksum(row: np.ndarray) -> int:
    """Return the checksum of a packed row."""
    value = 0
    for name in ("input_ids", "segment_ids", "loss_mask"):
        value = zlib.crc32(row[name].tobytes(), value)
    return value
