"""Files and data sets that hold a corpus, and reading their records; no Ray here.

`DataConfig.paths` may name JSONL (plain, .gz, .zst) and Parquet files, globs, directories, and
directories written by `datasets.save_to_disk`, each local or at a URI that fsspec knows, and
``hf:NAME[:CONFIG]``. `list_chunks` splits them into `SourceChunk`s, and `read_records` reads one.

Records are JSON text (bytes), not columns: records of one corpus may differ in their fields, and a
broken line is just text that does not parse.
"""

import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from otr._deprecated import renamed_names
from otr.config import DataConfig
from otr.loop.identity import sampled_digest

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
CHUNK_BYTES = 16 * 2**20
DIGEST_BYTES = 64 * 2**20  # bytes of a corpus that its identity covers


@dataclass(frozen=True)
class SourceChunk:
    """Part of a corpus that is read on its own: bytes of a file, or a shard of a hub data set."""

    kind: str
    """json, parquet, arrow or hub."""
    path: str
    start: int = 0
    """First byte; the chunk has the lines or row groups that begin in its range. hub: the shard."""
    end: int | None = None
    """Byte after the last one (None: the file's end). hub: the number of shards."""
    split: str = ""
    """Split of a hub data set."""


class UnreadableSource(ValueError):
    """A file or shard, or the rest of it, can't be read."""


def absolute_path(path: str) -> str:
    """Return a local path as an absolute one, valid in every process; a URI unchanged."""
    return path if "://" in path or path.startswith("hf:") else os.path.abspath(path)


def list_chunks(paths: Sequence[str], split: str = "train") -> list[SourceChunk]:
    """Return the chunks of all paths in order, from file names and sizes alone.

    Raises:
        ValueError: a path does not exist, or holds no file of a known format.
    """
    found: list[SourceChunk] = []
    for path in paths:
        if path.startswith("hf:"):
            found += _hub_chunks(path, split)
        else:
            found += chain.from_iterable(_file_chunks(*file) for file in _files(path, split))
    return found


def corpus_identity(config: DataConfig) -> list[tuple[str, int, str | None]]:
    """Return (base name, size in bytes, digest) of each training file, in order.

    A run compares them to notice that its corpus has changed. The digests cover up to DIGEST_BYTES
    of all files together; files of an object store have none. A hub data set is listed as its name
    with its split, and its number of shards.

    Raises:
        ValueError: as `list_chunks`.
    """
    found: list[tuple[str, int, str | None]] = []
    local: dict[int, str] = {}
    for path in config.paths:
        if path.startswith("hf:"):
            count = _hub_dataset(path, config.split).num_shards
            found.append((f"{path} {config.split}", count, None))
            continue
        for fs, name, _ in _files(path, config.split):
            if isinstance(fs, LocalFileSystem):
                local[len(found)] = name
            size = fs.size(name) if fs.exists(name) else None
            found.append((os.path.basename(name), size or 0, None))
    for number, name in local.items():
        with suppress(OSError):  # reading the file reports the error
            found[number] = (*found[number][:2], sampled_digest(name, DIGEST_BYTES // len(local)))
    return found


def read_records(chunk: SourceChunk) -> Iterator[bytes]:
    """Yield the records of a chunk as JSON text, without blank lines.

    Raises:
        UnreadableSource: the chunk can't be read to its end.
    """
    try:
        if chunk.kind == "json":
            yield from _json_lines(chunk)
        else:
            read = {"parquet": _parquet, "arrow": _arrow, "hub": _hub_shard}[chunk.kind]
            for record in read(chunk):
                yield json.dumps(record, default=str).encode()
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UnreadableSource(
            f"can't read {chunk.path}: {reason}: replace the file, or leave it out with "
            "data.skip_bad"
        ) from error


def first_malformed(chunks: Iterable[SourceChunk]) -> str:
    """Return file and number of the first line that is no JSON; empty if there is none."""
    for path in dict.fromkeys(chunk.path for chunk in chunks if chunk.kind == "json"):
        ends = suppress(OSError, EOFError, zlib.error, pa.ArrowException)
        with ends, _open_decompressed(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    json.loads(line.strip() or b"0")
                except ValueError:  # also raised for bytes that are not UTF-8
                    return f"{path.removeprefix('file://')}, line {number}"
    return ""


def _files(path: str, split: str) -> list[tuple[Any, str, str]]:
    """Return (file system, name, kind) of the files that a path, glob or directory names."""
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path!r}: no file system for it: {error}") from error
    if fs.isdir(inner):
        names = _saved_to_disk(fs, inner, split) or _inside(fs, inner)
    else:
        names = [inner] if fs.exists(inner) else _visible(sorted(fs.glob(inner)))
        if not names:
            raise ValueError(f"{path!r} does not exist: no such file, directory or glob")
    known = [(fs, name, kind) for name in names if (kind := _kind(name))]
    if not known:
        raise ValueError(
            f"{path!r} holds no corpus: use .jsonl, .json, .ndjson (also .gz, .zst) or .parquet"
        )
    return known


def _inside(fs: Any, directory: str) -> list[str]:
    """Return the files below a directory in order, without hidden ones and names with a first _."""
    return _visible(sorted(fs.find(directory)), len(directory.rstrip("/").split("/")))


def _visible(names: Sequence[str], depth: int = -1) -> list[str]:
    """Return the names whose parts from `depth` on (default: the last part) are not hidden."""
    return [n for n in names if not any(part[:1] in (".", "_") for part in n.split("/")[depth:])]


def _kind(name: str) -> str:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(JSON_SUFFIXES):
        return "json"
    return {"parquet": "parquet", "arrow": "arrow"}.get(name.rsplit(".", 1)[-1], "")


def _file_chunks(fs: Any, name: str, kind: str) -> Iterator[SourceChunk]:
    """Yield byte ranges of a plain JSONL or Parquet file; other files can't be split."""
    url = fs.unstrip_protocol(name)
    if kind == "arrow" or name.endswith((".gz", ".zst")):
        yield SourceChunk(kind, url)
        return
    size = fs.size(name) or 0
    for start in range(0, max(1, size), CHUNK_BYTES):
        yield SourceChunk(kind, url, start, min(size, start + CHUNK_BYTES))


def _saved_to_disk(fs: Any, directory: str, split: str) -> list[str]:
    """Return the Arrow files of a directory that `datasets.save_to_disk` wrote, [] for others."""
    if fs.exists(f"{directory}/dataset_dict.json"):
        splits = json.loads(fs.cat_file(f"{directory}/dataset_dict.json"))["splits"]
        if split not in splits:
            raise ValueError(f"{directory!r} has no split {split!r}: use one of {splits}")
        directory = f"{directory}/{split}"
    if not fs.exists(f"{directory}/state.json"):
        return []
    state = json.loads(fs.cat_file(f"{directory}/state.json"))
    return [f"{directory}/{file['filename']}" for file in state["_data_files"]]


def _json_lines(chunk: SourceChunk) -> Iterator[bytes]:
    """Yield the lines that begin inside the chunk."""
    with _open_decompressed(chunk.path) as file:
        position = chunk.start
        if chunk.start:
            file.seek(chunk.start - 1)
            position += len(file.readline()) - 1
        while chunk.end is None or position < chunk.end:
            line = file.readline()
            if not line:
                break
            position += len(line)
            if line.strip():
                yield line.rstrip(b"\r\n")


@contextmanager
def _open_decompressed(path: str) -> Iterator[io.BufferedReader]:
    if path.endswith(".zst"):
        # Arrow's reader reads all frames and raises for a truncated file. fsspec's stops after the
        # first frame, and zstandard's at the end of a truncated file, both silently.
        with fsspec.open(path, "rb") as file:
            reader = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
            yield io.BufferedReader(reader)
    else:
        with fsspec.open(path, "rb", compression="infer") as file:
            yield io.BufferedReader(file)


def _parquet(chunk: SourceChunk) -> Iterator[dict[str, Any]]:
    """Yield the records of the row groups that begin inside the chunk."""
    import pyarrow.parquet

    with fsspec.open(chunk.path, "rb") as file:
        whole = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        mine = range(chunk.start, chunk.end or sys.maxsize)
        groups = [n for n in range(whole.num_row_groups) if _first_byte(whole.metadata, n) in mine]
        for batch in whole.iter_batches(batch_size=1000, row_groups=groups) if groups else ():
            yield from batch.to_pylist()


def _first_byte(metadata: Any, group: int) -> int:
    column = metadata.row_group(group).column(0)
    return column.dictionary_page_offset or column.data_page_offset


def _arrow(chunk: SourceChunk) -> Iterator[dict[str, Any]]:
    import pyarrow.ipc

    with fsspec.open(chunk.path, "rb") as file:
        for batch in pyarrow.ipc.open_stream(file):
            yield from batch.to_pylist()


def _hub_dataset(path: str, split: str) -> Any:
    import datasets

    name, _, config = path.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen types, each with a clear message
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no data set {path!r} with split {split!r}: {reason}") from error


def _hub_chunks(path: str, split: str) -> Iterable[SourceChunk]:
    count = _hub_dataset(path, split).num_shards
    return [SourceChunk("hub", path, shard, count, split) for shard in range(count)]


def _hub_shard(chunk: SourceChunk) -> Iterator[dict[str, Any]]:
    dataset = _hub_dataset(chunk.path, chunk.split)
    try:
        yield from dataset.shard(num_shards=chunk.end, index=chunk.start)
    except Exception as error:  # any of the client's types, see `_hub_dataset`
        raise ValueError(f"shard {chunk.start} of {chunk.end}: {error}") from error


__getattr__ = renamed_names(__name__, pieces="list_chunks", rows="read_records")
