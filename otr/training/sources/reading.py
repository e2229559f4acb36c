"""Reading the records of a chunk, and naming the place of one."""

import io
import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from otr.training.sources import json_files, tables
from otr.training.sources.listing import SourceChunk
from otr.training.sources.text import open_utf8

READERS = {
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
    "hub": tables.read_hub_shard,
}
_ERRORS = (
    *(OSError, EOFError, ValueError, RecursionError, zlib.error, pa.ArrowException),
    OverflowError,  # a date that Python has no form for
)


class UnreadableSource(ValueError):
    """A file or shard, or the rest of it, can't be read."""


class Record(NamedTuple):
    """A record as it was read."""

    text: bytes
    """JSON, unless the record is broken. A row of a CSV file with the wrong number of cells is a
    JSON string that says so."""
    number: int
    """Lines of JSON: the position of its first byte in the decompressed file. CSV: its first line.
    Others: its number in the file or shard, from 1. See `place_of`."""


def read_records(chunk: SourceChunk) -> Iterator[bytes]:
    """Yield the records of a chunk as JSON text, without blank lines.

    Raises:
        UnreadableSource: the chunk can't be read to its end.
    """
    return (record.text for record in read_numbered(chunk))


def read_numbered(chunk: SourceChunk) -> Iterator[Record]:
    """Yield the records of a chunk with their numbers, without blank lines.

    Raises:
        UnreadableSource: the chunk can't be read to its end.
    """
    try:
        yield from map(Record._make, _read(chunk))
    except _ERRORS as error:
        reason = " ".join(str(error).split())
        remedy = getattr(error, "remedy", "replace the file")
        raise UnreadableSource(
            f"can't read {chunk.path}: {reason}: {remedy}, or leave it out with data.skip_bad"
        ) from error


def place_of(chunk: SourceChunk, number: int) -> str:
    """Return where a record stands, such as "data.jsonl, line 17".

    Lines of JSON are counted for it, from the file's beginning.

    Args:
        chunk: the chunk that was read.
        number: the record's, see `Record`.
    """
    name = chunk.path.removeprefix("file://")
    if chunk.kind == "hub":
        return f"{name}, split {chunk.split}, shard {chunk.start + 1} of {chunk.end}, row {number}"
    if chunk.kind in tables.DELIMITERS:
        return f"{name}, line {number}"
    if chunk.kind != "json":
        return f"{name}, row {number}"
    try:
        if not chunk.start and json_files.form_of(chunk.path) != "lines":
            return f"{name}, record {number}"
        return f"{name}, line {_line_of(chunk.path, number)}"
    except _ERRORS:  # the file has changed
        return name


def _read(chunk: SourceChunk) -> Iterator[tuple[bytes, int]]:
    if chunk.kind == "json":
        form = "lines" if chunk.start else json_files.form_of(chunk.path)
        if form == "lines":
            yield from json_files.read_lines(chunk.path, chunk.start, chunk.end)
        else:
            yield from json_files.read_values(chunk.path, form)
    elif chunk.kind in tables.DELIMITERS:
        yield from tables.read_csv(chunk)
    else:
        for record, number in READERS[chunk.kind](chunk):
            yield json.dumps(record, default=_as_text).encode(), number


def _as_text(value: Any) -> str:
    """Return a value that JSON has no form for; bytes, which some programs write, as their text."""
    # Bytes that are not UTF-8 become lone surrogates, which no text to train has.
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _line_of(path: str, position: int) -> int:
    """Return the number, from 1, of the line that begins at a byte."""
    line = 1
    with open_utf8(path) as file:
        while position > 0 and (data := file.read(min(position, io.DEFAULT_BUFFER_SIZE * 16))):
            line += data.count(b"\n")
            position -= len(data)
    return line
