"""Files of a corpus: which of them are read, which records they hold, and where these stand."""

import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from otr.config import DataConfig
from otr.training import sources
from otr.training.sources import UnreadableSource, json_files, listing, text
from otr.training.sources.listing import OTHER_FORMAT, READ_TWICE, VALIDATED_TOO
from otr.training.sources.splits import by_split, split_of

ROWS: list[dict[str, Any]] = [
    {"prompt": f"Wie heißt {i}?\n{{[,", "completion": f'"{i}"\u2028'} for i in range(30)
]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]
JSON_LINES = "\n".join(LINES)
KNOWN = r"\.jsonl, \.json, \.ndjson, \.csv, \.tsv, \.parquet, \.arrow.*\.gz or \.zst"


def texts(*paths: Path | str, split: str = "train") -> list[bytes]:
    chunks = sources.list_chunks([str(path) for path in paths], split)
    return [record for chunk in chunks for record in sources.read_records(chunk)]


def records(*paths: Path | str, split: str = "train") -> list[Any]:
    return [json.loads(text) for text in texts(*paths, split=split)]


def places(path: Path) -> list[str]:
    """Return where each record stands, without the directory."""
    found = [
        sources.place_of(chunk, record.number)
        for chunk in sources.list_chunks([str(path)])
        for record in sources.read_numbered(chunk)
    ]
    assert all(place.startswith(f"{path.parent}/") for place in found)
    return [place.removeprefix(f"{path.parent}/") for place in found]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix.lower(), bytes)
    path.write_bytes(compress(content[:99]) + compress(content[99:]))  # in two frames
    return path


def fails(path: Path, message: str) -> list[Any]:
    """Return the records before the error that reading a file must end with."""
    read: list[Any] = []
    with pytest.raises(UnreadableSource, match=message) as raised:
        for chunk in sources.list_chunks([str(path)]):
            read.extend(map(json.loads, sources.read_records(chunk)))
    assert str(path) in str(raised.value) and "leave it out with data.skip_bad" in str(raised.value)
    return read


FORMS = {
    "lines": JSON_LINES,
    "lines with commas": ",\n".join(LINES),
    "lines with commas and blanks": " ,\r\n\r\n ".join(LINES) + ",",
    "an array on one line": json.dumps(ROWS) + "\n\n",
    "an array, indented": json.dumps(ROWS, indent=2),
    "an array, deeply indented": json.dumps(ROWS, indent=90),
    "an array with one object per line": "[\n" + ",\n".join(LINES) + "\n]\n",
    "an array whose first line has an object": "[" + ",\n".join(LINES) + "]",
    "an array with a comma at its end": "[" + ",\n".join(LINES) + ",\n]",
    "objects over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "objects that begin with a field": "\n".join(
        json.dumps(row).replace(', "completion', ',\n "completion') for row in ROWS
    ),
}


@pytest.mark.parametrize("read_bytes", [1, 50, 2**18])
@pytest.mark.parametrize("suffix", ["json", "jsonl", "ndjson", "json.gz", "JSONL.ZST"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_gives_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, suffix: str, read_bytes: int
) -> None:
    monkeypatch.setattr(json_files, "READ_BYTES", read_bytes)
    path = tmp_path / f"rows.{suffix}"
    write(path, FORMS[form])
    assert records(path) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("field", ["data", "rows", "train", "instances", "any other"])
def test_an_object_with_one_list_of_objects_holds_records(
    tmp_path: Path, field: str, indent: int | None
) -> None:
    whole = {"version": 1, "tags": ["a"], "info": {"x": [{}]}, field: ROWS, "empty": []}
    for name in ("rows.json.gz", "rows.json"):
        path = write(tmp_path / name, json.dumps(whole, indent=indent))
        assert records(path) == ROWS
    assert places(path)[16] == "rows.json, record 17"


@pytest.mark.parametrize("read_bytes", [1, 2**18])
@pytest.mark.parametrize("indent", [None, 1])
def test_several_lists_of_objects_are_refused_with_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, read_bytes: int
) -> None:
    monkeypatch.setattr(json_files, "READ_BYTES", read_bytes)
    path = write(tmp_path / "rows.json", json.dumps({"one": ROWS, "two": ROWS}, indent=indent))
    assert fails(path, "several lists of objects, one, two: make a file of each") == []


MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
SHAREGPT = [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": MESSAGES},
        {"messages": MESSAGES, "tools": [{"type": "function"}]},
        {"dialog": MESSAGES, "tools": [{"type": "function"}]},
        {"conversations": SHAREGPT},
        {"talk": SHAREGPT},
        {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {"instruction": "1 + 1?", "output": "2", "sources": [{"text": "a"}]},
        {"question": "1 + 1?", "answer": "2"},
        {},
    ],
    ids=json.dumps,
)
def test_a_file_with_one_object_is_one_record(
    tmp_path: Path, record: dict[str, Any], indent: int | None
) -> None:
    for name in ("rows.json", "rows.jsonl"):
        path = write(tmp_path / name, json.dumps(record, indent=indent) + "\n")
        assert records(path) == [record]


def test_one_line_of_jsonl_is_a_record_whatever_its_fields(tmp_path: Path) -> None:
    record = {"question": "1 + 1?", "contexts": [{"text": "a"}]}
    assert records(write(tmp_path / "rows.jsonl", json.dumps(record))) == [record]
    assert records(write(tmp_path / "rows.json", json.dumps(record) + "\n" + LINES[0])) == [
        record,
        ROWS[0],
    ]


@pytest.mark.parametrize("first", ['{"prompt": ', '{"prompt": "a', '{"a": 1,', "[1, 2]", "no JSON"])
def test_a_broken_line_is_one_broken_record(tmp_path: Path, first: str) -> None:
    for lines in ([first, *LINES], [*LINES[:3], first, *LINES[3:]], [first, LINES[0]]):
        path = write(tmp_path / "rows.jsonl", "\n".join(lines))
        read = texts(path)
        assert len(read) == len(lines) and first.strip().rstrip(",").encode() in read
        assert len([text for text in read if _is_object(text)]) == len(lines) - 1


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def test_long_first_lines_are_told_from_files_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "HEAD_BYTES", 10)
    monkeypatch.setattr(json_files, "READ_BYTES", 10)
    test_an_object_with_one_list_of_objects_holds_records(tmp_path, "data", None)
    for form in ("lines", "an array on one line", "an array whose first line has an object"):
        assert records(write(tmp_path / "rows.json", FORMS[form])) == ROWS
    assert records(write(tmp_path / "rows.jsonl", LINES[0])) == ROWS[:1]


@pytest.mark.parametrize(
    ("content", "message", "before"),
    [
        ("[\n" + ",\n".join(LINES), "the file ends too early in line 31", 30),
        ("[\n" + ",\n".join(LINES)[:-5], "Unterminated string in line 31", 29),
        ('[\n{"a": 1},\n{"a": }\n]', "Expecting value in line 3: correct the file", 1),
        ('[\n{"a": 1},\n{"a": 1]\n]' + " " * 99, "Expecting ',' delimiter in line 3", 1),
        ('[{"a": 1}]\n{"a": 2}\nx', "no error", 3),
        ('[\n{"a": 1}]\n{"a": 2}', "there is text after the end of the records in line 3", 1),
        ('{"data": [\n{"a": 1},\n{"a": x}]}', "Expecting value in line 3", 1),
        ('{"data": [\n{"a": 1},\n{"a":', "the file ends too early in line 3", 1),
        ('{\n"data": [{"a": 1}]}]', "Expecting value in line 2", 1),
    ],
)
def test_an_error_in_an_array_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str, before: int
) -> None:
    for read_bytes in (3, 2**18):
        monkeypatch.setattr(json_files, "READ_BYTES", read_bytes)
        path = write(tmp_path / "rows.json", content)
        if message == "no error":
            assert len(texts(path)) == before, "lines, of which some are no objects"
        else:
            assert len(fails(path, message)) == before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(deadline=None)  # a busy machine
@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 0, 40]), st.booleans())
def test_any_array_is_read_from_any_pieces(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, ascii: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    content = json.dumps(values, indent=indent, ensure_ascii=ascii)
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        for read_bytes in (1, 7, 1000):
            patch.setattr(json_files, "READ_BYTES", read_bytes)
            read = json_files.read_values(str(path), "array")
            assert [json.loads(text) for text, _ in read] == values


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_large_array_is_not_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool, indent: int | None
) -> None:
    from otr.data import conversations  # noqa: F401  (its import takes memory)

    monkeypatch.setattr(json_files, "READ_BYTES", 2**12)
    monkeypatch.setattr(json_files, "HEAD_BYTES", 2**12)
    rows = [{"prompt": "x" * 1000, "completion": str(i)} for i in range(4000)]
    path = write(
        tmp_path / "rows.json", json.dumps({"data": rows} if wrapped else rows, indent=indent)
    )
    chunks = sources.list_chunks([str(path)])
    assert len(chunks) == 1
    tracemalloc.start()
    try:
        count = sum(1 for _ in sources.read_records(chunks[0]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000 and peak < path.stat().st_size / 4


@pytest.mark.parametrize("form", FORMS)
def test_only_lines_are_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", 100)
    path = write(tmp_path / "rows.json", FORMS[form])
    chunks = sources.list_chunks([str(path)])
    assert (len(chunks) > 10) == form.startswith("lines")
    assert records(path) == ROWS
    assert len(sources.list_chunks([str(write(tmp_path / "rows.json.gz", FORMS[form]))])) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.csv"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
    ],
)
def test_byte_order_marks_tell_the_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str, mark: bytes
) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", 100)
    monkeypatch.setattr(text, "_READ_CHARS", 11)
    rows = [{"prompt": "日本語" * 10, "completion": "\U0001f600"}, *ROWS]
    for content in ("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), rows):
        if name == "rows.csv":
            content = csv_text(rows)
        elif not isinstance(content, str):
            content = json.dumps(rows, ensure_ascii=False, indent=1)
        path = write(tmp_path / name, mark + content.encode(encoding))
        assert records(path) == rows
        assert not any(text.startswith(codecs.BOM_UTF8) for text in texts(path))
    monkeypatch.undo()
    long = [{"prompt": "x" * 1000, "completion": "日" * 20_000}] * 3
    content = csv_text(long) if name == "rows.csv" else json.dumps(long, ensure_ascii=False)
    assert records(write(path, mark + content.encode(encoding))) == long
    if name == "rows.jsonl":
        write(path, mark + "\n".join(LINES).encode(encoding))
        assert places(path)[16] == "rows.jsonl, line 17"


def test_a_file_of_nothing_but_a_mark_has_no_records(tmp_path: Path) -> None:
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, b"", b"\n \n"):
        for suffix in ("jsonl", "json", "csv", "tsv"):
            assert records(write(tmp_path / f"rows.{suffix}", mark)) == []


@pytest.mark.parametrize("content", ['{"prompt": "Stra\udcdfe"}', '[{"prompt": "Stra\udcdfe"}]'])
def test_other_encodings_are_broken_records(tmp_path: Path, content: str) -> None:
    [text] = texts(write(tmp_path / "rows.json", content))
    assert text == b'{"prompt": "Stra\xdfe"}'
    with pytest.raises(UnicodeDecodeError):
        json.loads(text)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_encodings_that_nothing_tells_are_unreadable(
    tmp_path: Path, encoding: str, suffix: str
) -> None:
    content = csv_text(ROWS) if suffix == "csv" else JSON_LINES
    path = write(tmp_path / f"rows.{suffix}", content.encode(encoding))
    fails(path, "it is not UTF-8: it begins with zero bytes: save it as UTF-8, or leave it out")


def test_a_file_that_ends_within_a_character_of_utf16_is_unreadable(tmp_path: Path) -> None:
    fails(write(tmp_path / "rows.jsonl", JSON_LINES.encode("utf-16")[:-1]), "truncated data")


@pytest.mark.parametrize("name", ["rows.jsonl.zst", "rows.JSONL.ZST", "rows.csv.GZ"])
def test_a_compressed_file_that_is_cut_is_unreadable(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, JSON_LINES)
    path.write_bytes(path.read_bytes()[:-20])
    fails(path, "can't read")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}"), "compressed by gzip: let its name end in .gz, or leave it out"),
        (zstandard.compress(b"{}"), "compressed by Zstandard: let its name end in .zst"),
        (lzma.compress(b"{}"), "compressed by xz: decompress it"),
        (b"PK\3\4...", "a ZIP archive: unpack it"),
    ],
    ids=["gzip", "zstandard", "xz", "zip"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_file_of_another_format_is_unreadable(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    fails(write(tmp_path / f"rows.{suffix}", content), f"it is {re.escape(message)}")


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "arrow"])
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, suffix: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    message = "it is a pointer of Git LFS, not the data: run `git lfs pull`, or leave it out"
    fails(write(tmp_path / f"rows.{suffix}", pointer), message)


def test_a_table_in_binary_that_is_called_text_is_unreadable(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "rows.jsonl")
    fails(tmp_path / "rows.jsonl", "it is a Parquet file: let its name end in .parquet")
    with pa.ipc.new_file(str(tmp_path / "rows.csv"), table.schema) as file:
        file.write_table(table)
    fails(tmp_path / "rows.csv", "it is an Arrow file: let its name end in .arrow")


def test_arrow_files_are_read_as_arrow_streams_are(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    for name, new in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        with new(str(tmp_path / f"{name}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=7)
        assert records(tmp_path / f"{name}.arrow") == ROWS
    assert places(tmp_path / "file.arrow")[-1] == "file.arrow, row 30"


def test_bytes_of_a_table_are_text(tmp_path: Path) -> None:
    """Some programs write text without saying that it is text."""
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["heißt".encode(), b"hei\xdft"]}), path)
    assert records(path) == [{"text": "heißt"}, {"text": "hei\udcdft"}]


def test_the_hub_is_mentioned_where_a_name_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"; a data set of the Hugging Face hub is hf:NAME$"):
        sources.list_chunks(["HuggingFaceH4/ultrachat_200k"])
    with pytest.raises(ValueError, match=r"or glob$"):
        sources.list_chunks([str(tmp_path / "rows.jsonl")])


def csv_text(rows: Sequence[dict[str, str]], delimiter: str = ",") -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.zst"])
def test_tables_of_text_give_objects_of_text(tmp_path: Path, suffix: str) -> None:
    rows = [
        *ROWS,
        {"prompt": 'a "quote", a\ttab\r\nand lines\n\n', "completion": ""},
        {"prompt": "x" * 200_000, "completion": "1"},
    ]
    delimiter = "," if suffix.startswith("csv") else "\t"
    path = write(tmp_path / f"rows.{suffix}", "\n" + csv_text(rows, delimiter))
    assert records(path) == rows
    assert places(path)[:3] == [f"rows.{suffix}, line {line}" for line in (3, 5, 7)]


def test_a_row_with_other_cells_than_the_columns_is_a_broken_record(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "prompt,completion\na,b\na\n\na,b,c\n\udcfc,b\nc,d\n")
    first, few, many, encoding, last = records(path)
    assert [first, last] == [
        {"prompt": "a", "completion": "b"},
        {"prompt": "c", "completion": "d"},
    ]
    assert few == "1 cells, but there are 2 columns: ['a']"
    assert many == "3 cells, but there are 2 columns: ['a', 'b', 'c']"
    assert encoding.startswith("not UTF-8, save the file as UTF-8")
    assert places(path) == [f"rows.csv, line {line}" for line in (2, 3, 5, 6, 7)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt;completion\na;b", "one column, 'prompt;completion': separate the cells by commas"),
        ("prompt,prompt\na,b", "line 1 names several columns prompt: rename columns"),
        ("gr\udcfc\xdf,b\na,b", "line 1 is not UTF-8: save the file as UTF-8"),
        ('a,b\n1,2\n"3,4\n5,6\n', "row of line 3: unexpected end of data: .*each quote.* twice"),
        ('a,b\n1,2\n"3"x,4\n', "row of line 3: .*expected after"),
    ],
)
def test_a_table_that_is_no_csv_is_unreadable(tmp_path: Path, content: str, message: str) -> None:
    fails(write(tmp_path / "rows.csv", content), message)


def test_columns_without_a_name_are_called_by_number(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", ",prompt\n0,a\n")
    assert records(path) == [{"column 1": "0", "prompt": "a"}]


def test_a_date_that_python_has_no_form_for_is_unreadable(tmp_path: Path) -> None:
    dates = pa.array([10**18] * len(ROWS), pa.timestamp("us"))
    table = pa.Table.from_pylist(ROWS).append_column("date", dates)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    fails(tmp_path / "rows.parquet", "rows.parquet: date value out of range")


def test_a_number_of_too_many_digits_is_a_broken_line(tmp_path: Path) -> None:
    long = '{"n": ' + "9" * 5000 + "}"
    assert texts(write(tmp_path / "rows.jsonl", f"{long}\n{{}}\n")) == [long.encode(), b"{}"]
    fails(write(tmp_path / "rows.json", f"[{{}},\n{long}]"), r"digits\).* in line 2: correct the")


def test_fields_that_are_null_are_left_out_of_tables_but_not_of_json(tmp_path: Path) -> None:
    calls = [
        {"name": "add", "arguments": {"a": 1, "b": 2}},
        {"name": "say", "arguments": {"words": ["x", None]}},
    ]
    rows = [
        {"messages": [{"content": "", "tool_calls": [call]}], "note": None, "id": i}
        for i, call in enumerate(calls)
    ]
    table = pa.Table.from_pylist(rows)
    filled = table.to_pylist()[0]["messages"][0]["tool_calls"][0]["arguments"]
    assert filled == {"a": 1, "b": 2, "words": None}, "this is what Arrow does"
    expected = [{key: row[key] for key in ("messages", "id")} for row in rows]
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    pyarrow.parquet.write_table(table, (tmp_path / "hub").mkdir() or tmp_path / "hub/0.parquet")
    for path in (tmp_path / "rows.parquet", tmp_path / "saved", f"hf:{tmp_path / 'hub'}"):
        assert records(path) == expected
    for name, content in (("rows.json", json.dumps(rows)), ("rows.jsonl", json.dumps(rows[0]))):
        assert records(write(tmp_path / name, content))[0] == rows[0]


TREES: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    # files; those that are read; the split
    "hub": (
        ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv", "data/test-0.csv"],
        ["data/train-00000-of-00002.csv", "data/train-00001-of-00002.csv"],
        "train",
    ),
    "by name": (["my_Train.csv", "test.csv", "x.dev.csv"], ["my_Train.csv"], "train"),
    "by directory": (["train/0.csv", "val/0.csv", "test/a/0.csv"], ["train/0.csv"], "train"),
    "name before directory": (["train/a.csv", "train/eval.csv"], ["train/a.csv"], "train"),
    "without a split": (["a.csv", "b/c.csv", "test.csv"], ["a.csv", "b/c.csv"], "train"),
    "no splits": (["a.csv", "latest.csv", "contest.csv"], ["a.csv", "contest.csv"], "train"),
    "another split": (["train.csv", "a.csv", "valid.csv"], ["valid.csv"], "validation"),
    "another word": (["train.csv", "dev-2.csv"], ["dev-2.csv"], "eval"),
    "a name of its own": (
        ["train_gen-0.csv", "train_sft-0.csv", "test_sft-0.csv"],
        ["train_sft-0.csv"],
        "train_sft",
    ),
    "descriptions": (
        ["a.csv", "dataset_infos.json", "b/dataset_info.json", "state.json", "README.md"],
        ["a.csv"],
        "train",
    ),
}
TREES["no splits"] = (TREES["no splits"][0], sorted(TREES["no splits"][0]), "any")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("as_glob", [False, True])
def test_a_directory_gives_the_files_of_a_split(tmp_path: Path, tree: str, as_glob: bool) -> None:
    files, expected, split = TREES[tree]
    root = tmp_path / "test_val" / "corpus"  # these words are not of the corpus
    for name in files:
        write(root / name, f"name\n{name}\n" if name.endswith("csv") else '{"name": "none"}')
    path = f"{root}/**" if as_glob else root
    assert sorted(row["name"] for row in records(path, split=split)) == sorted(expected)
    config = DataConfig((str(path),), split=split)
    assert len(sources.corpus_identity(config)) == len(expected)
    tables = [name for name in files if name.endswith("csv")]
    assert sum(sources.left_out([str(path)], split).values()) == len(tables) - len(expected)


def test_a_split_that_no_file_has_is_refused_with_the_others(tmp_path: Path) -> None:
    for name in ("test.jsonl", "dev.jsonl"):
        write(tmp_path / name, LINES[0])
    message = "has no file of split 'train': the names tell validation, test: set data.split"
    with pytest.raises(ValueError, match=message):
        sources.list_chunks([str(tmp_path)])
    assert len(records(tmp_path / "*.jsonl", split="test")) == 1
    assert sources.left_out([str(tmp_path)], "test") == {"validation": 1}


def test_links_in_a_directory_are_followed_once(tmp_path: Path) -> None:
    """fsspec's `find` takes a link to a directory for a file, which has no known suffix."""
    write(tmp_path / "elsewhere" / "b.jsonl", JSON_LINES)
    write(tmp_path / "corpus" / "a.jsonl", JSON_LINES)
    (tmp_path / "corpus" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "corpus")
    for path in (tmp_path / "corpus", tmp_path / "corpus" / "**"):
        assert records(path) == ROWS + ROWS
    assert records(tmp_path / "corpus" / "*" / "*.jsonl") == ROWS


def test_a_link_to_nothing_is_an_unreadable_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", JSON_LINES)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(sources.UnreadableSource, match=r"b\.jsonl: .*No such file"):
        records(tmp_path)


def test_a_directory_that_can_not_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "part" / "a.jsonl", JSON_LINES)
    write(tmp_path / "b.jsonl", JSON_LINES)

    def scandir(path: str) -> Any:
        if str(path).endswith("part"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    listed = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)  # root may list any
    with pytest.raises(ValueError, match=r"can't be listed: .*Permission denied: .*part"):
        sources.list_chunks([str(tmp_path)])


def test_what_becomes_of_files_is_counted(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, JSON_LINES) for name in ("a.jsonl", "b.jsonl")]
    for name in ("c.jsonl.bz2", "d.parquet.gz", "e.txt", "f.txt", ".hidden.txt", "README"):
        write(tmp_path / name, "x")
    (tmp_path / "folder.txt").mkdir()
    unread = {OTHER_FORMAT.format(".jsonl.bz2, .parquet.gz, .txt, README"): 5}
    for all_of_it in (tmp_path, tmp_path / "*"):
        assert sources.file_remarks(DataConfig((str(all_of_it),))) == unread
        twice = DataConfig((str(all_of_it), f"{tmp_path}/../{tmp_path.name}/a.jsonl"))
        assert sources.file_remarks(twice) == {READ_TWICE: 1, **unread}
    one, both = (str(paths[0]),), tuple(map(str, paths))
    assert sources.file_remarks(DataConfig(one)) == {}
    assert sources.file_remarks(DataConfig(both, validation=one)) == {VALIDATED_TOO: 1}
    assert sources.file_remarks(DataConfig(one, validation=("none.jsonl",))) == {}


def test_what_is_named_itself_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "train" / "test.jsonl", JSON_LINES)
    write(tmp_path / "train" / "train.jsonl", LINES[0])
    assert records(path) == ROWS
    with pytest.raises(ValueError, match="the names tell test"):  # the glob has no whole word
        records(tmp_path / "train" / "te*.jsonl")
    assert records(tmp_path / "train" / "test*.jsonl") == ROWS
    assert records(tmp_path / "*" / "test.jsonl") == ROWS
    info = write(tmp_path / "info" / "dataset_infos.json", LINES[0])
    assert records(info) == ROWS[:1]
    with pytest.raises(ValueError, match="holds no corpus"):
        sources.list_chunks([str(info.parent)])


def test_splits_are_told_at_any_file_system() -> None:
    store = fsspec.filesystem("memory")
    for name in ("train", "test"):
        store.pipe(f"/corpus/{name}.jsonl", json.dumps({"split": name}).encode())
    for path in ("memory://corpus", "memory://corpus/", "memory://corpus/*.jsonl"):
        assert records(path) == [{"split": "train"}]
        assert records(path, split="test") == [{"split": "test"}]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("data/validation.jsonl", "validation"),
        ("TEST/0.jsonl", "test"),
        ("x_val2.json", "validation"),
        ("trainer.jsonl", None),
        ("evaluations/protest.jsonl", None),
        ("größeval.jsonl", None),
    ],
)
def test_words_of_a_name_tell_its_split(path: str, split: str | None) -> None:
    assert split_of(path) == split
    assert by_split([path], split or "train") == {split or "train": [path]}


@pytest.mark.parametrize("name", ["rows.txt", "rows.parquet.gz", "rows.json.bz2", "jsonl"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    write(tmp_path / "one" / name, JSON_LINES)
    for path in (tmp_path / "one" / name, tmp_path / "one", tmp_path / "one" / "*"):
        with pytest.raises(ValueError, match=f"holds no corpus: use files that end in {KNOWN}"):
            sources.list_chunks([str(path)])


def test_places_count_blank_lines_and_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", 150)
    path = write(tmp_path / "rows.jsonl", "\r\n\n".join(LINES))
    assert places(path) == [f"rows.jsonl, line {2 * i + 1}" for i in range(30)]
    assert places(write(tmp_path / "rows.jsonl.gz", "\n" + JSON_LINES))[0] == (
        "rows.jsonl.gz, line 2"
    )
    path = write(tmp_path / "rows.json", json.dumps(ROWS))
    assert places(path) == [f"rows.json, record {i + 1}" for i in range(30)]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=7)
    assert len(sources.list_chunks([str(path)])) > 4
    assert places(path) == [f"rows.parquet, row {i + 1}" for i in range(30)]


def test_places_in_data_sets(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    [chunk] = sources.list_chunks([str(tmp_path / "saved")])
    [*_, last] = sources.read_numbered(chunk)
    place = sources.place_of(chunk, last.number)
    assert place == f"{tmp_path}/saved/data-00000-of-00001.arrow, row 30"
    for name in ("a", "b"):
        write(tmp_path / "hub" / f"{name}.jsonl", JSON_LINES)
    _, second = sources.list_chunks([f"hf:{tmp_path}/hub"])
    [*_, last] = sources.read_numbered(second)
    place = sources.place_of(second, last.number)
    assert place == f"hf:{tmp_path}/hub, split train, shard 2 of 2, row 30"


def test_an_unreadable_shard_is_counted_from_one(tmp_path: Path) -> None:
    write(tmp_path / "hub" / "a.jsonl", JSON_LINES)
    write(tmp_path / "hub" / "b.jsonl", "{broken\n")
    _, second = sources.list_chunks([f"hf:{tmp_path}/hub"])
    with pytest.raises(sources.UnreadableSource, match="hub: shard 2 of 2: "):
        list(sources.read_records(second))


def test_a_place_in_a_file_that_is_gone_is_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", JSON_LINES)
    [chunk] = sources.list_chunks([str(path)])
    path.unlink()
    assert sources.place_of(chunk, 100) == str(path)


def test_a_value_that_is_nested_too_deeply_is_unreadable(tmp_path: Path) -> None:
    fails(
        write(tmp_path / "rows.json", "[\n{}," + "[" * 100_000 + "]" * 100_000 + "]"), "recursion"
    )
