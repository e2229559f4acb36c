"""Corpora on disk, in every supported form, are read and become packed rows."""

import gzip
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from otr.config import DataConfig, ModelConfig
from otr.training import corpus, sources
from otr.training.sources import listing
from tests.assets.tiny import make_tiny_model

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": str(2 * i)} for i in range(50)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("model"))))


def all_records(*paths: Any) -> list[Any]:
    return [
        json.loads(row)
        for piece in sources.list_chunks([str(p) for p in paths])
        for row in sources.read_records(piece)
    ]


def write(directory: Path, form: str) -> Path | str:
    """Write ROWS in one of the supported forms; return the path."""
    path = directory / f"rows.{form}"
    if form == "jsonl":
        path.write_bytes(TEXT)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]))
    elif form == "jsonl.zst":
        frames = [zstandard.compress(part) for part in (TEXT[:99], TEXT[99:])]
        path.write_bytes(b"".join(frames))
    elif form == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif form == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(path)
    elif form == "saved_splits":
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)
    elif form == "hub":
        path.mkdir()
        (path / "train.jsonl").write_bytes(TEXT)
        return f"hf:{path}"
    return path


def parquet() -> bytes:
    """Return a Parquet file of ROWS in row groups of ten."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=10)
    return file.getvalue()


def damaged(content: bytes) -> bytes:
    """Return a Parquet file with the header of one page overwritten."""
    groups = pyarrow.parquet.ParquetFile(io.BytesIO(content)).metadata
    offset = groups.row_group(3).column(0).data_page_offset
    return content[:offset] + b"\xff" * 20 + content[offset + 20 :]


def falsified() -> bytes:
    """Return a Parquet file with page checksums, and a digit changed in one page."""
    file = io.BytesIO()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    table = pa.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, file, write_page_checksum=True, **plain)
    return file.getvalue().replace(b"What is 7", b"What is 9")


def arrow() -> bytes:
    file = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


FORMS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "saved", "saved_splits", "hub"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(tmp_path: Path, form: str) -> None:
    assert all_records(write(tmp_path, form)) == ROWS


def test_directories_and_globs_are_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name, part in (("b/2.jsonl", ROWS[20:]), ("a/1.jsonl", ROWS[:20]), ("a/.x.jsonl", ROWS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "README.md").write_text("not a row")
    assert all_records(tmp_path) == ROWS
    assert all_records(tmp_path / "*" / "*.jsonl") == ROWS
    assert all_records(f"file://{tmp_path}/b") == ROWS[20:]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_chunks_of_a_file_have_each_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(listing, "CHUNK_BYTES", size)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT.replace(b"\n", b"\r\n\n").rstrip())
    assert all_records(path) == ROWS
    (path := tmp_path / "rows.parquet").write_bytes(parquet())
    assert all_records(path) == ROWS
    assert (
        size > 100
        or max(len(list(sources.read_records(p))) for p in sources.list_chunks([str(path)])) == 10
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.jsonl", "does not exist"), ("*.jsonl", "does not exist"), (".", "holds no corpus")],
)
def test_a_path_without_a_corpus_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        sources.list_chunks([str(tmp_path / path)])


GZ, ZST = gzip.compress(TEXT), zstandard.compress(TEXT)
BAD = {
    "cut.jsonl.gz": GZ[:-20],
    "cut.jsonl.zst": ZST[:-20],
    "second-frame-cut.jsonl.zst": ZST + ZST[:-20],
    "bad.jsonl.gz": b"no gzip at all",
    "garbled.jsonl.gz": GZ[:30] + b"garbage" + GZ[37:],
    "bad.jsonl.zst": b"no zstandard at all",
    "bad.parquet": b"PAR1 no parquet at all PAR1",
    "page.parquet": damaged(parquet()),
    "falsified.parquet": falsified(),
    "cut.arrow": arrow()[:-600],
    "directory.jsonl": None,
}


@pytest.mark.parametrize("name", BAD)
def test_an_unreadable_file_is_named_or_skipped(
    tmp_path: Path, model: ModelConfig, name: str
) -> None:
    (tmp_path / "good.jsonl").write_bytes(TEXT)
    path, content = tmp_path / name, BAD[name]
    path.mkdir() if content is None else path.write_bytes(content)
    # The glob matches a directory by its name, as if it were a file.
    config = DataConfig((str(tmp_path / "good.jsonl"), f"{path}*"), sequence_length=64)
    message = rf"can't read .*/{name}: .*replace the file, or leave it out with data\.skip_bad$"
    with pytest.raises(ValueError, match=message) as raised:
        corpus.inspect_corpus(config, model)
    assert "\n" not in str(raised.value)
    report = corpus.inspect_corpus(replace(config, skip_bad=True, max_rejected=0.0), model)
    assert report.rejected == {"unreadable": 1} and report.rows >= len(ROWS)
    [sample] = report.samples
    assert sample["detail"] == str(raised.value) and sample["cause"] == "unreadable"
    columns = corpus.pack_locally(replace(config, skip_bad=True), model, limit=len(ROWS) + 1)
    assert sum(columns["segment_ids"].max(axis=1)) >= len(ROWS)


def test_a_corpus_without_a_readable_file_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(BAD[path.name] or b"")
    config = DataConfig((str(path),), {"prompt": "question"}, skip_bad=True, max_rejected=1.0)
    with pytest.raises(ValueError, match=r"no file of the corpus can be read.*/bad\.parquet"):
        corpus.inspect_corpus(config, model)


def test_the_identity_changes_with_the_files_content(tmp_path: Path) -> None:
    def identity(*paths: Path | str) -> list[tuple[str, int, str | None]]:
        return sources.corpus_identity(DataConfig(tuple(map(str, paths))))

    before = tmp_path / "before"
    before.mkdir()
    path = write(before, "jsonl")
    write(before, "parquet")
    first = identity(before)
    assert first[0][:2] == ("rows.jsonl", len(TEXT)) and first[1][0] == "rows.parquet"
    assert identity(before.rename(tmp_path / "after")) == first, "a moved corpus is the same"
    path = tmp_path / "after" / "rows.jsonl"
    path.write_bytes(TEXT[:-3] + b" }\n")
    [edited, same] = identity(tmp_path / "after")
    assert edited[:2] == first[0][:2] and edited != first[0] and same == first[1]
    (hub := tmp_path / "hub").mkdir()
    assert identity(name := write(hub, "hub")) == [(f"{name} train", 1, None)]
    [(name, size, _)] = identity(write(tmp_path, "saved"))
    assert name == "data-00000-of-00001.arrow" and size > 0


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test': use one of \['train'\]"):
        sources.list_chunks([str(write(tmp_path, "saved_splits"))], split="test")


def test_inspect_corpus_counts_causes_and_shows_an_example(
    tmp_path: Path, model: ModelConfig
) -> None:
    path = tmp_path / "rows.jsonl"
    empty, long = {"prompt": "", "completion": "1"}, {"prompt": "x" * 300, "completion": "1"}
    path.write_bytes(
        TEXT + b'{"prompt": \n\xff\n' + f"{json.dumps(empty)}\n{json.dumps(long)}".encode()
    )
    config = DataConfig((str(path),), sequence_length=64, max_rejected=0.1)
    report = corpus.inspect_corpus(config, model)
    assert (report.rows, report.complete) == (54, True)
    assert report.rejected == {"broken": 2, "empty": 1, "over-long": 1}
    assert {s["cause"] for s in report.samples} == set(report.rejected)
    assert [text for text, trained in report.example if trained] == ["0<|im_end|>"]
    first = corpus.inspect_corpus(config, model, limit=10)
    assert (first.rows, first.complete, first.rejected) == (10, False, {})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "the corpus has the columns question, answer: map them"),
        ({"prompt": "questoin", "completion": "answer"}, "did you mean 'question'"),
        ({"promt": "question", "completion": "answer"}, "did you mean 'prompt'"),
        ({"prompt": "question"}, "columns question, answer, but none for 'completion': map"),
    ],
)
def test_unknown_columns_are_refused_with_the_nearest(
    tmp_path: Path, model: ModelConfig, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}))
    with pytest.raises(ValueError, match=message):
        corpus.inspect_corpus(DataConfig((str(path),), columns), model)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("promt", "completion"), "; perhaps --columns prompt=promt$"),
        (("Prompt", " completion"), r"; perhaps --columns prompt=Prompt 'completion= completion'$"),
        (("mesages", "id"), "; perhaps --columns messages=mesages$"),
        (("question", "answer"), "or to text$"),
        (("prompt", "chosen", "rejected"), "or to text$"),
    ],
)
def test_columns_with_nearly_our_names_are_suggested(
    tmp_path: Path, model: ModelConfig, names: Sequence[str], hint: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(dict.fromkeys(names, "a")))
    with pytest.raises(ValueError, match=hint):
        corpus.inspect_corpus(DataConfig((str(path),)), model)


def test_only_the_first_of_many_columns_are_named(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({str(number): ROWS[0] for number in range(5000)}))
    with pytest.raises(ValueError, match="29 and 4,970 more: map them") as caught:
        corpus.inspect_corpus(DataConfig((str(path),)), model)
    assert len(str(caught.value)) < 400


def test_a_record_with_a_name_twice_is_broken(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT + b'{"prompt": "a", "prompt": "b", "completion": "c"}\n')
    config = DataConfig((str(path),), sequence_length=64)
    [sample] = corpus.inspect_corpus(config, model).samples
    assert sample["cause"] == "broken" and "an object has 'prompt' twice" in sample["detail"]
    assert sample["place"] == f"{path}, line 51"


def test_too_many_rejected_records_are_refused(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT + b"broken\n" * 3)
    with pytest.raises(ValueError, match=r"3 of 53 records can't be used \(3 broken\).*5%"):
        corpus.inspect_corpus(DataConfig((str(path),), sequence_length=64), model)
    corpus.inspect_corpus(DataConfig((str(path),), sequence_length=64, max_rejected=0.06), model)


def test_a_path_that_gives_nothing_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    (tmp_path / "rows.jsonl").write_bytes(TEXT)
    (tmp_path / "other.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    paths = (str(tmp_path / "rows.jsonl"), str(tmp_path / "other.jsonl"))
    config = DataConfig(paths, sequence_length=64)
    with pytest.raises(ValueError, match=r"none of the records of .*other.jsonl can be used \(1 w"):
        corpus.inspect_corpus(config, model)
    for chosen in ({"max_rejected": 1.0}, {"skip_bad": True}):
        assert corpus.inspect_corpus(replace(config, **chosen), model).rejected == {"broken": 1}
    assert not corpus.inspect_corpus(config, model, limit=20).complete  # others may follow


def test_an_empty_corpus_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="the corpus is empty"):
        corpus.inspect_corpus(DataConfig((str(path),)), model)


def test_validation_is_read_from_its_own_split(tmp_path: Path, model: ModelConfig) -> None:
    for split in ("train", "validation", "test"):
        records = [{"prompt": f"of {split}", "completion": "x"}] * 3
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    config = DataConfig((str(tmp_path),), validation=(str(tmp_path),), sequence_length=64)
    report = corpus.inspect_corpus(config, model)
    assert "of train" in report.example[0][0]
    assert report.left_out == {"test": 1, "validation": 1}
    assert "of validation" in corpus.inspect_corpus(config.of_validation, model).example[0][0]
    hub = DataConfig((f"hf:{tmp_path}::test",), sequence_length=64)  # the path names a split
    assert "of test" in corpus.inspect_corpus(hub, model).example[0][0]
