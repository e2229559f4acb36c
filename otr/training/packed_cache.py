"""Packed rows kept on a host's disk, so that the trials of a sweep tokenize a corpus once a host.

In: a part of a corpus and the rows that are made of it. Out: the same rows, from a file where the
part was read to its end here before, as the same text and by the same tokenizer and code. What
can't be kept, for lack of room or of a way to tell that it has changed, is made again.

The files lie in `OTR_CACHE`, by default ``~/.cache/otr/packed``; where it is set to nothing, none.
"""

import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from fsspec.implementations.local import LocalFileSystem

from otr.config import DataConfig, ModelConfig
from otr.training.sources import SourceChunk

SHARE = 0.1  # of the disk, at most
UNUSED_SECONDS = 24 * 3600  # after which a file makes room for another one
CODE = (
    *("data.py", "models/tokenizer.py", "training/audit.py", "training/corpus.py"),
    *("training/sources.py", "training/packed_cache.py"),
)
VERSIONS = {"ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime"}
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model", ".py")

Columns = dict[str, np.ndarray]


def place_of(part: Sequence[SourceChunk], config: DataConfig, model: ModelConfig) -> Path | None:
    """Where the rows of a part are kept, if they are; None where that can't be told.

    The name is a digest of all that decides them.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        tokenizer = [*_tokenizer_stamp(model.path), model.trust_remote_code]
        stamps = [_commit(p.path) if p.kind == "hub" else _stamp(p.path) for p in part]
    except Exception:  # a file that is gone, a hub that is away: reading will say so
        return None
    text = [{**asdict(p), "stamp": stamp} for p, stamp in zip(part, stamps, strict=True)]
    what = [text, config.columns, config.sequence_length, tokenizer, _code()]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
    return folder / f"{name}.arrow"


def read(place: Path | None, first: int) -> Iterator[Columns] | None:
    """The batches of a part from number `first` on; None where they are not kept."""
    if place is None:
        return None
    try:
        os.utime(place)
        reader = pa.ipc.open_file(pa.memory_map(str(place)))
    except (OSError, pa.ArrowInvalid):  # not there, or torn
        return None
    return _batches(place, reader, first)


def _batches(place: Path, reader: Any, first: int) -> Iterator[Columns]:
    try:
        for number in range(first, reader.num_record_batches):
            yield _columns(reader.get_batch(number))
    except (OSError, pa.ArrowException):  # the disk's fault; the next start makes them again
        place.unlink(missing_ok=True)
        raise


def keeping(
    find: Callable[[], Path | None], batches: Iterable[tuple[Columns, bool]]
) -> Iterator[Columns]:
    """The batches of a part, which are kept when all have been taken.

    Args:
        find: the place of the part, if it has one; asked again at the end, since what decides the
            rows may have changed while they were made.
        batches: each with whether it is as it will always be: one that could not be read is not.
    """
    place = find()
    writer: _Writer | None = None if place is None else _Writer(place)
    try:
        for columns, lasting in batches:
            if writer is not None and not (lasting and writer.add(columns)):
                writer.drop()
                writer = None
            yield columns
        if writer is not None and find() == place:
            writer.finish()
    finally:
        if writer is not None:
            writer.drop()


class _Writer:
    """Of one file, whole or not at all; what goes wrong with it is nobody's trouble."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
        self.file: Any = None

    def add(self, columns: Columns) -> bool:
        """Whether that was possible."""
        try:
            table = _table(columns)
            if self._opened(table.schema):
                self.file.write_batch(table)
                return True
        except OSError:  # a full disk, a folder of somebody else's
            pass
        return False

    def finish(self) -> None:
        """Give it its name; a part without rows has a file without batches."""
        with suppress(OSError):
            if self.file is not None or self._opened(pa.schema([])):
                self.file.close()
                with open(self.partial, "rb") as file:
                    os.fsync(file.fileno())
                self.partial.replace(self.place)

    def drop(self) -> None:
        """Leave nothing, unless it has been finished."""
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _opened(self, schema: pa.Schema) -> bool:
        """Whether there is room for more in it."""
        if not _room(self.place.parent):
            return False
        if self.file is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self.file = pa.ipc.new_file(str(self.partial), schema, options=options)
        return True


def _folder() -> Path | None:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("OTR_CACHE", f"{cache}/otr/packed")
    return Path(folder).expanduser() if folder else None


def _room(folder: Path) -> bool:
    """Whether more may be kept; what nobody used for long is removed for that."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    files = []
    for path in [*folder.glob("*.arrow"), *folder.glob(".*.arrow.*")]:
        with suppress(OSError):  # another trial has just removed it
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    taken, free = sum(size for _, size, _ in files), disk.free
    for used, size, path in sorted(files):
        if taken <= SHARE * disk.total and free >= SHARE * disk.total:
            break
        if time.time() - used > UNUSED_SECONDS:
            path.unlink(missing_ok=True)
            taken, free = taken - size, free + size
    return taken <= SHARE * disk.total and free >= SHARE * disk.total


def _table(columns: Mapping[str, np.ndarray]) -> pa.RecordBatch:
    arrays = {}
    for name, column in columns.items():
        array = pa.array(column.reshape(-1))
        if column.ndim == 2:
            array = pa.FixedSizeListArray.from_arrays(array, column.shape[1])
        arrays[name] = array
    return pa.RecordBatch.from_pydict(arrays)


def _columns(table: pa.RecordBatch) -> Columns:
    columns = {}
    for name in table.schema.names:
        array = table.column(name)
        if pa.types.is_fixed_size_list(array.type):
            flat = array.flatten().to_numpy(zero_copy_only=False)
            columns[name] = flat.reshape(len(array), -1)
        else:
            columns[name] = array.to_numpy(zero_copy_only=False)
    return columns


def _stamp(path: str) -> list[str]:
    """Differs when the file is written anew.

    Raises:
        ValueError: its store does not tell.
    """
    fs, inner = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        stat = os.stat(inner)
        return [str(stat.st_size), str(stat.st_mtime_ns)]  # a shared directory may number anew
    fs.invalidate_cache(inner)
    told = [f"{key} {value}" for key, value in fs.info(inner).items() if key in VERSIONS]
    if not told:
        raise ValueError(f"{path}: no time of change, no tag")
    return sorted(told)


@functools.lru_cache
def _digest(path: Path, changed: int) -> str:
    """Of what the file holds: a job's own copy of a model is newer than that of the job before."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit(path: str) -> str | None:
    """Of a data set of the hub."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(path.removeprefix("hf:").partition(":")[0]).sha


@functools.lru_cache
def _code() -> str:
    """Of what makes the rows."""
    digest = hashlib.sha256()
    for name in CODE:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    for package in ("transformers", "tokenizers", "jinja2"):
        digest.update(metadata.version(package).encode())
    return digest.hexdigest()


def _tokenizer_stamp(model: str) -> list[Any]:
    """Of a directory the files beside its weights; of the hub's model the commit that is here.

    Raises:
        ValueError: none is here.
    """
    folder = Path(model)
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.suffix in TOKENIZER_FILES]
        return [(path.name, _digest(path, path.stat().st_mtime_ns)) for path in files]
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "tokenizer_config.json")
    if not isinstance(found, str):
        raise ValueError(f"{model}: not here yet")
    return [Path(found).parent.name]
