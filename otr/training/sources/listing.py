"""Which files and data sets a corpus consists of, and their division into chunks."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from otr.config import DataConfig
from otr.loop.identity import sampled_digest
from otr.training.sources import json_files, splits
from otr.training.sources.text import COMPRESSED

KIND_OF_SUFFIX = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
WITHOUT_ROWS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
"""Files that describe a data set."""
CHUNK_BYTES = 16 * 2**20
DIGEST_BYTES = 64 * 2**20  # bytes of a corpus that its identity covers
READ_TWICE = "files that --data names more than once: their records are trained as often"
VALIDATED_TOO = "files that are trained on and validated on"
OTHER_FORMAT = "files that are not read, whose names end in {}"
_FIXED_PART = re.compile(r"([^*?\[]*/)?")  # of a glob: the directories before the first wildcard


@dataclass(frozen=True)
class SourceChunk:
    """Part of a corpus that is read on its own: bytes of a file, or a shard of a hub data set."""

    kind: str
    """json, csv, tsv, parquet, arrow or hub."""
    path: str
    start: int = 0
    """First byte; the chunk has the lines or row groups that begin in its range. hub: the shard."""
    end: int | None = None
    """Byte after the last one (None: the file's end). hub: the number of shards."""
    split: str = ""
    """Split of a hub data set."""


@dataclass(frozen=True)
class _File:
    fs: Any
    name: str
    kind: str


def absolute_path(path: str) -> str:
    """Return a local path as an absolute one, valid in every process; a URI unchanged."""
    return path if "://" in path or path.startswith("hf:") else os.path.abspath(path)


def list_chunks(paths: Sequence[str], split: str = "train") -> list[SourceChunk]:
    """Return the chunks of all paths in order, from the names, sizes and beginnings of files.

    Raises:
        ValueError: a path does not exist, holds no file of a known format, or has no such split.
    """
    found: list[SourceChunk] = []
    for path in paths:
        if path.startswith("hf:"):
            found += _hub_chunks(path, split)
        else:
            found += chain.from_iterable(map(_file_chunks, _files(path, split)))
    return found


def left_out(paths: Sequence[str], split: str = "train") -> dict[str, int]:
    """Return the number of files per split that `list_chunks` leaves out for another split.

    Raises:
        ValueError: as `list_chunks`.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        if not path.startswith("hf:"):
            counts.update({name: len(each) for name, each in _by_split(path, split).items()})
    del counts[split]
    return dict(counts)


def file_remarks(config: DataConfig) -> dict[str, int]:
    """Return what the owner of a corpus should know of its files, each with the number of files.

    Files for another split are not among them, see `left_out`.

    Raises:
        ValueError: as `list_chunks`.
    """
    trained = Counter(_identities(config.paths, config.split))
    validation: set[str] = set()
    with suppress(ValueError):  # reading the validation data reports it
        validation = {*_identities(config.validation, "validation")}
    others = _other_formats(config.paths, config.split)
    found = {
        READ_TWICE: sum(count > 1 for count in trained.values()),
        VALIDATED_TOO: len(validation & trained.keys()),
        OTHER_FORMAT.format(", ".join(sorted(others))): others.total(),
    }
    return {remark: count for remark, count in found.items() if count}


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
            count = hub_dataset(path, config.split).num_shards
            found.append((f"{path} {config.split}", count, None))
            continue
        for file in _files(path, config.split):
            if isinstance(file.fs, LocalFileSystem):
                local[len(found)] = file.name
            size = file.fs.size(file.name) if file.fs.exists(file.name) else None
            found.append((os.path.basename(file.name), size or 0, None))
    for number, name in local.items():
        with suppress(OSError):  # reading the file reports the error
            found[number] = (*found[number][:2], sampled_digest(name, DIGEST_BYTES // len(local)))
    return found


def hub_dataset(path: str, split: str) -> Any:
    """Return a data set of the hub as a stream.

    Args:
        path: ``hf:NAME[:CONFIG[:SPLIT]]``.
        split: the split, if the path names none.

    Raises:
        ValueError: there is no such data set or split, or the hub does not answer.
    """
    import datasets

    name, config, own_split = (*path.removeprefix("hf:").split(":", 2), "", "")[:3]
    split = own_split or split
    if not name:
        raise ValueError(f"{path!r} names no data set: give hf:NAME, hf:NAME:CONFIG or more")
    try:
        return datasets.load_dataset(name, config or None, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen types, each with a clear message
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no data set {path!r} with split {split!r}: {reason}") from error


def _hub_chunks(path: str, split: str) -> Iterable[SourceChunk]:
    count = hub_dataset(path, split).num_shards
    return [SourceChunk("hub", path, shard, count, split) for shard in range(count)]


def _identities(paths: Sequence[str], split: str) -> Iterator[str]:
    """Yield a name for each file, the same for all ways to name it, and for each hub data set."""
    for path in paths:
        if path.startswith("hf:"):
            yield f"{path} {split}"
            continue
        for file in _files(path, split):
            local = isinstance(file.fs, LocalFileSystem)
            yield os.path.realpath(file.name) if local else file.fs.unstrip_protocol(file.name)


def _other_formats(paths: Sequence[str], split: str) -> Counter[str]:
    """Return the number of files of no known format in directories and globs, per suffix."""
    found: Counter[str] = Counter()
    for path in paths:
        if not path.startswith("hf:"):
            fs, inner = fsspec.core.url_to_fs(path)
            names, _ = _names(fs, inner, split)
            found.update(_suffix(name) for name in names if not _kind(name) and fs.isfile(name))
    return found


def _suffix(name: str) -> str:
    """Return what the name of a file ends with, such as .txt or .parquet.gz; else the name."""
    stem, last = os.path.splitext(os.path.basename(name))
    before = os.path.splitext(stem)[1]
    return f"{before if before.lower() in KIND_OF_SUFFIX else ''}{last}" or stem


def _files(path: str, split: str) -> Sequence[_File]:
    return _by_split(path, split)[split]


def _by_split(path: str, split: str) -> dict[str, Sequence[_File]]:
    """Return the files that a path, glob or directory names, by split; `split` is one of them."""
    try:
        fs, inner = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{path!r}: no file system for it: {error}") from error
    try:
        names, root = _names(fs, inner, split)
    except FileNotFoundError:
        hint = "" if _kind(path) else "; a data set of the Hugging Face hub is hf:NAME"
        raise ValueError(
            f"{path!r} does not exist: no such file, directory or glob{hint}"
        ) from None
    except OSError as error:
        raise ValueError(f"{path!r} can't be listed: {error}") from error
    files = [_File(fs, name, kind) for name in names if (kind := _kind(name))]
    if not files:
        raise ValueError(
            f"{path!r} holds no corpus: use files that end in "
            f"{', '.join(KIND_OF_SUFFIX)}; all but .parquet and .arrow "
            f"may also have {' or '.join(COMPRESSED)}"
        )
    if root is None:
        return {split: files}
    inside = {file.name.removeprefix(root): file for file in files}
    try:
        found = splits.by_split([*inside], split)
    except ValueError as error:
        raise ValueError(f"{path!r} has {error}") from None
    return {name: [inside[each] for each in paths] for name, paths in found.items()}


def _names(fs: Any, path: str, split: str) -> tuple[Sequence[str], str | None]:
    """Return the names of files, and what precedes the part of each that may tell a split.

    The latter is None if the names say nothing about splits.

    Raises:
        FileNotFoundError: there is no such file or directory, and no match of a glob.
    """
    if fs.isdir(path):
        saved = _saved_to_disk(fs, path, split)
        directory = path.rstrip("/") + "/"
        return (saved, None) if saved else (_inside(fs, directory), directory)
    if fs.exists(path):
        return [path], None
    matches = sorted(_glob(path) if isinstance(fs, LocalFileSystem) else fs.glob(path))
    if not _visible(matches):
        raise FileNotFoundError
    fixed = _FIXED_PART.match(path)
    root = fixed[0] if fixed else ""
    # A glob that tells a split itself is meant as it is.
    return _with_rows(_visible(matches)), None if splits.split_of(path.removeprefix(root)) else root


def _inside(fs: Any, directory: str) -> Sequence[str]:
    """Return the files below a directory in order, without hidden ones and names with a first _.

    Raises:
        OSError: a directory can't be listed.
    """
    found = _find(directory) if isinstance(fs, LocalFileSystem) else fs.find(directory)
    return _with_rows(_visible(sorted(found), directory.count("/")))


def _find(directory: str) -> Iterator[str]:
    """Yield the files below a local directory.

    fsspec's `find` follows no links to directories, and passes over those that it can't list.

    Raises:
        OSError: a directory can't be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for folder, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        inside = os.path.realpath(folder)
        folders[:] = _visible(folders) if inside not in seen else []
        if inside not in seen:  # else it is a link to a directory that was read
            yield from (os.path.join(folder, name) for name in names)
        seen.add(inside)


def _with_rows(names: Sequence[str]) -> Sequence[str]:
    return [name for name in names if os.path.basename(name) not in WITHOUT_ROWS]


def _visible(names: Sequence[str], depth: int = -1) -> list[str]:
    """Return the names whose parts from `depth` on (default: the last part) are not hidden."""
    return [n for n in names if not any(part[:1] in (".", "_") for part in n.split("/")[depth:])]


def _kind(name: str) -> str:
    """Return the format of a file, "" if it is unknown."""
    plain = re.sub(r"\.(gz|zst)$", "", name.lower())
    kind = KIND_OF_SUFFIX.get(os.path.splitext(plain)[1], "")
    return "" if plain != name.lower() and kind in ("parquet", "arrow") else kind


def _glob(pattern: str) -> Collection[str]:
    """Return the local matches of a glob. fsspec's follows no links to directories."""
    matches = sorted(glob.glob(pattern, recursive=True), reverse=True)
    # A link to a directory above gives the same files again: the first name of each stays.
    return {
        (os.path.realpath(os.path.dirname(name)), os.path.basename(name)): name for name in matches
    }.values()


def _file_chunks(file: _File) -> Iterator[SourceChunk]:
    """Yield byte ranges of a large file of lines or row groups; one chunk for other files."""
    url = file.fs.unstrip_protocol(file.name)
    size = 0
    with suppress(OSError):  # a link to nothing, say; reading the file reports the error
        size = file.fs.size(file.name) or 0
    if size <= CHUNK_BYTES or not _is_divisible(file, url):
        yield SourceChunk(file.kind, url)
        return
    for start in range(0, size, CHUNK_BYTES):
        yield SourceChunk(file.kind, url, start, min(size, start + CHUNK_BYTES))


def _is_divisible(file: _File, url: str) -> bool:
    if file.kind == "json" and not file.name.lower().endswith(COMPRESSED):
        with suppress(OSError, ValueError):  # reading the file reports the error
            return json_files.is_divisible(url)
    return file.kind == "parquet"


def _saved_to_disk(fs: Any, directory: str, split: str) -> list[str]:
    """Return the Arrow files of a directory that `datasets.save_to_disk` wrote, [] for others."""
    known = _described(fs, f"{directory}/dataset_dict.json", "splits")
    if known:
        if split not in known:
            raise ValueError(f"{directory!r} has no split {split!r}: use one of {known}")
        directory = f"{directory}/{split}"
    files = _described(fs, f"{directory}/state.json", "_data_files")
    return [f"{directory}/{file['filename']}" for file in files]


def _described(fs: Any, path: str, field: str) -> list[Any]:
    """Return a list of a file that describes a saved data set, [] if it has none."""
    if not fs.exists(path):
        return []
    with suppress(ValueError, KeyError, TypeError):  # another program's file of that name
        return list(json.loads(fs.cat_file(path))[field])
    return []
