"""Cache of packed rows on a host's disk: the trials of a sweep tokenize a corpus once per host.

A cached part of the corpus is one Arrow file. Its name is a digest of everything that decides the
packed rows: the text, the options, the tokenizer and the code. A part is cached once it has been
read to its end. If there is no room, or no way to notice that the text has changed, it is tokenized
again.

The files lie in `OTR_CACHE`, by default ``~/.cache/otr/packed``; an empty `OTR_CACHE` turns the
cache off.
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

from otr import files
from otr.config import DataConfig, ModelConfig
from otr.loop.identity import chat_template_digest
from otr.training.sources import SourceChunk

DISK_SHARE = 0.1  # the cache takes no more of the disk, and leaves at least as much free
UNUSED_SECONDS = 24 * 3600  # a file that nobody has read for so long makes room for others
CODE = (
    *("data", "models/tokenizer.py", "training/audit.py", "training/corpus.py"),
    *("training/sources", "training/packed_cache.py"),
)
VERSION_KEYS = {"ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime"}
"""Keys under which fsspec's file systems tell that a file was written again."""
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model", ".py")

Columns = dict[str, np.ndarray]


def cache_path(part: Sequence[SourceChunk], config: DataConfig, model: ModelConfig) -> Path | None:
    """Return the path of a part's packed rows, whether they are cached or not.

    Returns:
        None if the cache is off, or if a change of the part's text can't be noticed.
    """
    folder = _folder()
    if folder is None:
        return None
    try:
        template = [chat_template_digest(model.chat_template), model.chat_template_args]
        tokenizer = [*_tokenizer_version(model.path), model.trust_remote_code, *template]
        versions = [
            _dataset_commit(c.path) if c.kind == "hub" else _file_version(c.path) for c in part
        ]
    except Exception:  # a missing file, an unavailable hub: reading the part reports the error
        return None
    text = [{**asdict(c), "stamp": version} for c, version in zip(part, versions, strict=True)]
    options = [config.columns, config.sequence_length, config.train_on, config.over_long]
    key = [text, *options, tokenizer, _code_digest()]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return folder / f"{name}.arrow"


def read_batches(path: Path | None, first: int) -> Iterator[Columns] | None:
    """Return the cached batches of a part from number `first` on, or None if it is not cached."""
    if path is None:
        return None
    try:
        os.utime(path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid):  # missing or truncated
        return None
    return _batches(path, reader, first)


def _batches(path: Path, reader: Any, first: int) -> Iterator[Columns]:
    try:
        for number in range(first, reader.num_record_batches):
            yield _columns(reader.get_batch(number))
    except (OSError, pa.ArrowException):  # a damaged file; the next start tokenizes the part again
        path.unlink(missing_ok=True)
        raise


def write_through(
    find_path: Callable[[], Path | None], batches: Iterable[tuple[Columns, bool]]
) -> Iterator[Columns]:
    """Yield the batches of a part, and cache them once all have been taken.

    Args:
        find_path: returns the part's path in the cache. It is called again at the end, since the
            text or the tokenizer may have changed meanwhile.
        batches: (columns, reproducible); a batch that could not be read completely is not.
    """
    path = find_path()
    writer: _Writer | None = None if path is None else _Writer(path)
    try:
        for columns, reproducible in batches:
            if writer is not None and not (reproducible and writer.add(columns)):
                writer.discard()
                writer = None
            yield columns
        if writer is not None and find_path() == path:
            writer.finish()
    finally:
        if writer is not None:
            writer.discard()


class _Writer:
    """Writer of one cache file, which appears complete or not at all. It raises no OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self.file: Any = None

    def add(self, columns: Columns) -> bool:
        """Write a batch and return whether that succeeded."""
        try:
            table = _table(columns)
            if self._open(table.schema):
                self.file.write_batch(table)
                return True
        except OSError:  # a full disk, or a folder that belongs to another user
            pass
        return False

    def finish(self) -> None:
        """Give the file its final name. A part without packed rows has a file without batches."""
        with suppress(OSError):
            if self.file is not None or self._open(pa.schema([])):
                self.file.close()
                files.publish(self.partial, self.path)

    def discard(self) -> None:
        """Delete what was written, unless the file is finished."""
        with suppress(OSError):
            if self.file is not None:
                self.file.close()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def _open(self, schema: pa.Schema) -> bool:
        """Open the file if it is not open; return whether there is room for more in it."""
        if not _make_room(self.path.parent):
            return False
        if self.file is None:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self.file = pa.ipc.new_file(str(self.partial), schema, options=options)
        return True


def _folder() -> Path | None:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("OTR_CACHE", f"{cache}/otr/packed")
    return Path(folder).expanduser() if folder else None


def _make_room(folder: Path) -> bool:
    """Delete files that nobody has used for long, if needed; return whether there is room."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    cached = []
    for path in [*folder.glob("*.arrow"), *folder.glob(".*.arrow.*")]:
        with suppress(OSError):  # another trial has just deleted it
            stat = path.stat()
            cached.append((stat.st_mtime, stat.st_size, path))
    taken, free = sum(size for _, size, _ in cached), disk.free
    for used, size, path in sorted(cached):
        if taken <= DISK_SHARE * disk.total and free >= DISK_SHARE * disk.total:
            break
        if time.time() - used > UNUSED_SECONDS:
            path.unlink(missing_ok=True)
            taken, free = taken - size, free + size
    return taken <= DISK_SHARE * disk.total and free >= DISK_SHARE * disk.total


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


def _file_version(path: str) -> list[str]:
    """Return a value that changes when the file is written again.

    Raises:
        ValueError: the file's store gives no time of change and no tag.
    """
    fs, inner = fsspec.core.url_to_fs(path)
    if isinstance(fs, LocalFileSystem):
        stat = os.stat(inner)
        # Not the inode: a shared directory may number its files differently on each host.
        return [str(stat.st_size), str(stat.st_mtime_ns)]
    fs.invalidate_cache(inner)
    version = [f"{key} {value}" for key, value in fs.info(inner).items() if key in VERSION_KEYS]
    if not version:
        raise ValueError(f"{path}: no time of change, no tag")
    return sorted(version)


def _dataset_commit(path: str) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(path.removeprefix("hf:").partition(":")[0]).sha


@functools.lru_cache
def _code_digest() -> str:
    """Return a digest of the modules and packages that decide the packed rows."""
    digest = hashlib.sha256()
    for name in CODE:
        path = Path(__file__).parents[1] / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    for package in ("transformers", "tokenizers", "jinja2"):
        digest.update(metadata.version(package).encode())
    return digest.hexdigest()


def _tokenizer_version(model: str) -> list[Any]:
    """Return digests of a directory's tokenizer files, or the cached commit of a hub model.

    Raises:
        ValueError: a hub model is not cached here yet.
    """
    folder = Path(model)
    if folder.is_dir():
        found = [path for path in sorted(folder.iterdir()) if path.suffix in TOKENIZER_FILES]
        return [(path.name, _content_digest(path, path.stat().st_mtime_ns)) for path in found]
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "tokenizer_config.json")
    if not isinstance(config, str):
        raise ValueError(f"{model} is not in the local cache yet")
    return [Path(config).parent.name]


@functools.lru_cache
def _content_digest(path: Path, mtime_ns: int) -> str:
    """Return a digest of the content: copies of a model differ in their times, not in it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
