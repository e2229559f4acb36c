"""Where the rows of a corpus lie, and reading them one after another; no Ray here.

In: what `DataConfig.paths` names: JSONL (plain, .gz, .zst) and Parquet files, globs, directories,
directories made by `datasets.save_to_disk`, each local or at a URI that fsspec knows, and
``hf:NAME[:CONFIG]``. Out: `SourceChunk`s, each of which one task reads, and rows as JSON text (bytes).
JSON text and not columns: rows of one corpus may differ in their fields, and a broken line is but
a text that does not parse.
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

from otr.config import DataConfig
from otr.loop.identity import sampled_digest

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
PIECE_BYTES = 16 * 2**20
DIGEST_BYTES = 64 * 2**20  # that are looked at to tell whether a corpus has changed


@dataclass(frozen=True)
class SourceChunk:
    """A part of a corpus that is read on its own."""

    kind: str
    """json, parquet, arrow or hub."""
    path: str
    start: int = 0
    """First byte: lines and row groups that begin from here on; number of a hub's shard."""
    end: int | None = None
    """Byte after the last one (None: the file's end); number of shards."""
    split: str = ""
    """Of a hub data set."""


class UnreadableSource(ValueError):
    """A file, or the rest of it, can't be read."""


def absolute_path(path: str) -> str:
    """A local path from the root, so that it means the same in every process; a URI as it is."""
    return path if "://" in path or path.startswith("hf:") else os.path.abspath(path)


def list_chunks(paths: Sequence[str], split: str = "train") -> list[SourceChunk]:
    """What `paths` name, in order; nothing is read yet but names and sizes.

    Raises:
        ValueError: a path that is not there, or holds nothing that can be read.
    """
    found: list[SourceChunk] = []
    for path in paths:
        if path.startswith("hf:"):
            found += _hub(path, split)
        else:
            found += chain.from_iterable(_pieces(*file) for file in _stored(path, split))
    return found


def corpus_identity(config: DataConfig) -> list[tuple[str, int, str | None]]:
    """What tells that the training files are others, of each in order: base name, bytes, digest.

    The digests look at up to DIGEST_BYTES in all; a store's files have none. A hub data set gives
    its name with its split, and its number of shards.

    Raises:
        ValueError: as `pieces`.
    """
    found: list[tuple[str, int, str | None]] = []
    local: dict[int, str] = {}
    for path in config.paths:
        if path.startswith("hf:"):
            count = _hub_dataset(path, config.split).num_shards
            found.append((f"{path} {config.split}", count, None))
            continue
        for fs, name, _ in _stored(path, config.split):
            if isinstance(fs, LocalFileSystem):
                local[len(found)] = name
            size = fs.size(name) if fs.exists(name) else None
            found.append((os.path.basename(name), size or 0, None))
    for number, name in local.items():
        with suppress(OSError):  # reading will say so
            found[number] = (*found[number][:2], sampled_digest(name, DIGEST_BYTES // len(local)))
    return found


def read_records(piece: SourceChunk) -> Iterator[bytes]:
    """The rows of a piece as JSON text; blank lines are left out.

    Raises:
        UnreadableSource: it can't be read to its end.
    """
    try:
        if piece.kind == "json":
            yield from _json_lines(piece)
        else:
            read = {"parquet": _parquet, "arrow": _arrow, "hub": _hub_shard}[piece.kind]
            for row in read(piece):
                yield json.dumps(row, default=str).encode()
    except (OSError, EOFError, ValueError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UnreadableSource(
            f"can't read {piece.path}: {reason}: replace the file, or leave it out with "
            "data.skip_bad"
        ) from error


def _stored(path: str, split: str) -> list[tuple[Any, str, str]]:
    """File system, name and kind of the files that a path, glob or directory names."""
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path!r}: no file system for it: {error}") from error
    if fs.isdir(inner):
        names = _saved_to_disk(fs, inner, split) or _inside(fs, inner)
    else:
        names = [inner] if fs.exists(inner) else _visible(sorted(fs.glob(inner)))
        if not names:
            raise ValueError(f"{path!r} is not there: no such file, directory or glob")
    known = [(fs, name, kind) for name in names if (kind := _kind(name))]
    if not known:
        raise ValueError(
            f"{path!r} holds no corpus: use .jsonl, .json, .ndjson (also .gz, .zst) or .parquet"
        )
    return known


def _inside(fs: Any, directory: str) -> list[str]:
    """Files below a directory, in order; none that is hidden or begins with _."""
    return _visible(sorted(fs.find(directory)), len(directory.rstrip("/").split("/")))


def _visible(names: Sequence[str], depth: int = -1) -> list[str]:
    """Those of which no part from `depth` on is hidden; by default the last part."""
    return [n for n in names if not any(part[:1] in (".", "_") for part in n.split("/")[depth:])]


def _kind(name: str) -> str:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(JSON_SUFFIXES):
        return "json"
    return {"parquet": "parquet", "arrow": "arrow"}.get(name.rsplit(".", 1)[-1], "")


def _pieces(fs: Any, name: str, kind: str) -> Iterator[SourceChunk]:
    """One piece, or several of a plain JSONL or Parquet file, which can be entered anywhere."""
    url = fs.unstrip_protocol(name)
    if kind == "arrow" or name.endswith((".gz", ".zst")):
        yield SourceChunk(kind, url)
        return
    size = fs.size(name) or 0
    for start in range(0, max(1, size), PIECE_BYTES):
        yield SourceChunk(kind, url, start, min(size, start + PIECE_BYTES))


def _saved_to_disk(fs: Any, directory: str, split: str) -> list[str]:
    """The Arrow files of a directory made by `datasets.save_to_disk`; [] for any other one."""
    if fs.exists(f"{directory}/dataset_dict.json"):
        splits = json.loads(fs.cat_file(f"{directory}/dataset_dict.json"))["splits"]
        if split not in splits:
            raise ValueError(f"{directory!r} has no split {split!r}: use one of {splits}")
        directory = f"{directory}/{split}"
    if not fs.exists(f"{directory}/state.json"):
        return []
    state = json.loads(fs.cat_file(f"{directory}/state.json"))
    return [f"{directory}/{file['filename']}" for file in state["_data_files"]]


def _json_lines(piece: SourceChunk) -> Iterator[bytes]:
    """Lines that begin inside the piece."""
    with _opened(piece.path) as file:
        place = piece.start
        if piece.start:
            file.seek(piece.start - 1)
            place += len(file.readline()) - 1
        while piece.end is None or place < piece.end:
            line = file.readline()
            if not line:
                break
            place += len(line)
            if line.strip():
                yield line.rstrip(b"\r\n")


@contextmanager
def _opened(path: str) -> Iterator[io.BufferedReader]:
    """The file's bytes, decompressed."""
    if path.endswith(".zst"):
        # fsspec's own reader ends after the first of several frames, and zstandard's where a file
        # is cut off, both without a word; Arrow's goes on, and raises.
        with fsspec.open(path, "rb") as file:
            reader = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
            yield io.BufferedReader(reader)
    else:
        with fsspec.open(path, "rb", compression="infer") as file:
            yield io.BufferedReader(file)


def _parquet(piece: SourceChunk) -> Iterator[dict[str, Any]]:
    """Rows of the row groups that begin inside the piece."""
    import pyarrow.parquet

    with fsspec.open(piece.path, "rb") as file:
        whole = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        mine = range(piece.start, piece.end or sys.maxsize)
        groups = [n for n in range(whole.num_row_groups) if _first_byte(whole.metadata, n) in mine]
        for batch in whole.iter_batches(batch_size=1000, row_groups=groups) if groups else ():
            yield from batch.to_pylist()


def _first_byte(metadata: Any, group: int) -> int:
    column = metadata.row_group(group).column(0)
    return column.dictionary_page_offset or column.data_page_offset


def _arrow(piece: SourceChunk) -> Iterator[dict[str, Any]]:
    import pyarrow.ipc

    with fsspec.open(piece.path, "rb") as file:
        for batch in pyarrow.ipc.open_stream(file):
            yield from batch.to_pylist()


def _hub_dataset(path: str, split: str) -> Any:
    import datasets

    name, _, config = path.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen kinds, each with a good text
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no data set {path!r} with split {split!r}: {reason}") from error


def _hub(path: str, split: str) -> Iterable[SourceChunk]:
    count = _hub_dataset(path, split).num_shards
    return [SourceChunk("hub", path, shard, count, split) for shard in range(count)]


def _hub_shard(piece: SourceChunk) -> Iterator[dict[str, Any]]:
    whole = _hub_dataset(piece.path, piece.split)
    try:
        yield from whole.shard(num_shards=piece.end, index=piece.start)
    except Exception as error:  # as many kinds as above
        raise ValueError(f"shard {piece.start} of {piece.end}: {error}") from error
