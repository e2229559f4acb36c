"""Records of tables: CSV, Parquet, Arrow, and shards of hub data sets."""

import csv
import io
import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import fsspec

from otr.training.sources.listing import SourceChunk, hub_dataset
from otr.training.sources.text import LFS_POINTER, FormatError, check_no_pointer, open_utf8

DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_CELL_CHARS = 2**31 - 1
ARROW_FILE = b"ARROW1"  # the beginning of a file that is no stream

Row = tuple[dict[str, Any], int]
"""A record, and the number of its row from 1."""


def read_csv(chunk: SourceChunk) -> Iterator[tuple[bytes, int]]:
    """Yield (text, first line) of each record. One that can't be used is a string that says why.

    Raises:
        FormatError: the names of the columns can't be used, or a quote is out of place.
    """
    csv.field_size_limit(MAX_CELL_CHARS)  # Python's own limit is 128 KiB
    with open_utf8(chunk.path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        rows = _rows(text, DELIMITERS[chunk.kind])
        names = _column_names(*next(rows, ([""], 1)))
        for cells, line in rows:
            yield json.dumps(_csv_record(names, cells)).encode(), line


def read_parquet(chunk: SourceChunk) -> Iterator[Row]:
    """Yield the records of the row groups that begin inside the chunk."""
    import pyarrow.parquet

    with fsspec.open(chunk.path, "rb") as file:
        check_no_pointer(file.read(len(LFS_POINTER)))
        file.seek(0)
        whole = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
        mine = range(chunk.start, chunk.end or sys.maxsize)
        groups, numbers, rows = [], [], 1
        for group in range(whole.num_row_groups):
            count = whole.metadata.row_group(group).num_rows
            if _first_byte(whole.metadata, group) in mine:
                groups.append(group)
                numbers.append(range(rows, rows + count))
            rows += count
        batches = whole.iter_batches(batch_size=1000, row_groups=groups) if groups else ()
        records = chain.from_iterable(batch.to_pylist() for batch in batches)
        for record, number in zip(records, chain.from_iterable(numbers), strict=True):
            yield without_nulls(record), number


def read_arrow(chunk: SourceChunk) -> Iterator[Row]:
    """Yield the records of an Arrow stream, as `datasets` writes them, or of an Arrow file."""
    import pyarrow.ipc

    with fsspec.open(chunk.path, "rb") as file:
        head = file.read(len(LFS_POINTER))
        check_no_pointer(head)
        file.seek(0)
        if head.startswith(ARROW_FILE):
            whole = pyarrow.ipc.open_file(file)
            batches = map(whole.get_batch, range(whole.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(file)
        records = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, record in enumerate(records, start=1):
            yield without_nulls(record), number


def read_hub_shard(chunk: SourceChunk) -> Iterator[Row]:
    """Yield the records of a shard of a hub data set."""
    dataset = hub_dataset(chunk.path, chunk.split)
    try:
        shard = dataset.shard(num_shards=chunk.end, index=chunk.start)
        for number, record in enumerate(shard, start=1):
            yield without_nulls(record), number
    except Exception as error:  # any of the client's types, see `hub_dataset`
        raise ValueError(f"shard {chunk.start + 1} of {chunk.end}: {error}") from error


def _first_byte(metadata: Any, group: int) -> int:
    column = metadata.row_group(group).column(0)
    return column.dictionary_page_offset or column.data_page_offset


def without_nulls(value: Any) -> Any:
    """Return a record without the fields, at every depth, that are None.

    Arrow gives all structs of a column the same fields, and sets absent ones to null. For example,
    the arguments of each tool call would have the parameters of all tools.
    """
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(each) for each in value]
    return value


def _rows(text: io.TextIOWrapper, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Yield (cells, first line) of each row that is not blank."""
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in rows:
            if cells:
                yield cells, line
            line = rows.line_num + 1
    except csv.Error as error:
        raise FormatError(
            f"the row of line {line}: {error}",
            "put cells with quotes into quotes, and write each quote in them twice",
        ) from error


def _column_names(cells: list[str], line: int) -> list[str]:
    """Return the names of the columns; those without a name are called by their number."""
    if len(cells) == 1 and any(other in cells[0] for other in ";\t"):
        raise FormatError(
            f"line {line} names one column, {cells[0]!r}",
            "separate the cells by commas in .csv files, by tabs in .tsv files",
        )
    if not _is_utf8(cells):
        raise FormatError(f"line {line} is not UTF-8", "save the file as UTF-8")
    names = [cell or f"column {number}" for number, cell in enumerate(cells, start=1)]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise FormatError(
            f"line {line} names several columns {', '.join(repeated)}", "rename columns"
        )
    return names


def _csv_record(names: list[str], cells: list[str]) -> dict[str, str] | str:
    """Return a row as an object, or the reason why it is none."""
    shown = str(cells).encode(errors="replace").decode()
    if len(cells) != len(names):
        return f"{len(cells)} cells, but there are {len(names)} columns: {shown}"
    if not _is_utf8(cells):
        return f"not UTF-8, save the file as UTF-8: {shown}"
    return dict(zip(names, cells, strict=True))


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:  # bytes that could not be decoded are lone surrogates
        return False
    return True
