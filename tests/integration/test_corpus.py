"""Corpora on disk, in every form that users have, become packed rows."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from otr.config import DataConfig, ModelConfig
from otr.training import corpus, sources
from tests.assets.tiny import make_tiny_model

ROWS = [{"prompt": f"What is {i} + {i}?", "completion": str(2 * i)} for i in range(50)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("model"))))


def every_row(*paths: Any) -> list[Any]:
    return [
        json.loads(row)
        for piece in sources.pieces([str(p) for p in paths])
        for row in sources.rows(piece)
    ]


def write(directory: Path, form: str) -> Path | str:
    """ROWS in one of the forms a corpus may have."""
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


FORMS = ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "saved", "saved_splits", "hub"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    assert every_row(write(tmp_path, form)) == ROWS


def test_directories_and_globs_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name, part in (("b/2.jsonl", ROWS[20:]), ("a/1.jsonl", ROWS[:20]), ("a/.x.jsonl", ROWS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "README.md").write_text("not a row")
    assert every_row(tmp_path) == ROWS
    assert every_row(tmp_path / "*" / "*.jsonl") == ROWS
    assert every_row(f"file://{tmp_path}/b") == ROWS[20:]


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_pieces_of_a_file_hold_each_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", size)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT.replace(b"\n", b"\r\n\n").rstrip())
    assert every_row(path) == ROWS


@pytest.mark.parametrize(
    ("path", "message"),
    [("nothing.jsonl", "is not there"), ("*.jsonl", "is not there"), (".", "holds no corpus")],
)
def test_what_is_not_there_is_refused(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=message):
        sources.pieces([str(tmp_path / path)])


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no split 'test': use one of \['train'\]"):
        sources.pieces([str(write(tmp_path, "saved_splits"))], split="test")


def test_inspect_counts_causes_and_shows_an_example(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    empty, long = {"prompt": "", "completion": "1"}, {"prompt": "x" * 300, "completion": "1"}
    path.write_bytes(
        TEXT + b'{"prompt": \n\xff\n' + f"{json.dumps(empty)}\n{json.dumps(long)}".encode()
    )
    config = DataConfig((str(path),), row_length=64, max_rejected=0.1)
    report = corpus.inspect(config, model)
    assert (report.rows, report.complete) == (54, True)
    assert report.rejected == {"broken": 2, "empty": 1, "over-long": 1}
    assert {s["cause"] for s in report.samples} == set(report.rejected)
    assert [text for text, trained in report.example if trained] == ["0<|im_end|>"]
    first = corpus.inspect(config, model, limit=10)
    assert (first.rows, first.complete, first.rejected) == (10, False, {})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "the corpus has the columns question, answer: map them"),
        ({"prompt": "questoin", "completion": "answer"}, "did you mean 'question'"),
        ({"promt": "question", "completion": "answer"}, "did you mean 'prompt'"),
    ],
)
def test_unknown_columns_name_the_nearest(
    tmp_path: Path, model: ModelConfig, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}))
    with pytest.raises(ValueError, match=message):
        corpus.inspect(DataConfig((str(path),), columns), model)


def test_too_many_rejected_rows_stop_it(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(TEXT + b"broken\n" * 3)
    with pytest.raises(ValueError, match=r"3 of 53 rows can't be used \(3 broken\).*5%"):
        corpus.inspect(DataConfig((str(path),), row_length=64), model)
    corpus.inspect(DataConfig((str(path),), row_length=64, max_rejected=0.06), model)


def test_an_empty_corpus_is_refused(tmp_path: Path, model: ModelConfig) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="the corpus is empty"):
        corpus.inspect(DataConfig((str(path),)), model)


@pytest.mark.integration
def test_ray_packs_every_usable_example(
    ray_cluster: None, tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Ray Data yields holds just the examples that plain Python finds, twice in one order."""
    for part in range(3):
        (tmp_path / f"{part}.jsonl").write_bytes(TEXT + b"broken\n")
    config = DataConfig((str(tmp_path),), row_length=128)
    stream = corpus.packed(config, model)
    stream.context.execution_options.preserve_order = True
    first, again = stream.take_all(), stream.take_all()
    local = corpus.packed_locally(config, model, config.paths, limit=1000)
    assert examples(first) == examples(rows_of(local))
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(first, again, strict=True))
    audit = corpus.Audit(0.05)
    audit.add(row["audit"] for row in first)
    assert (audit.rows, audit.rejected) == (153, {"broken": 3})


@pytest.mark.integration
def test_a_batch_without_a_usable_row_still_reports(
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    (tmp_path / "rows.jsonl").write_text("broken\n" * 5)
    [row] = corpus.packed(DataConfig((str(tmp_path),), row_length=64), model).take_all()
    assert not row["segment_ids"].any()
    assert json.loads(row["audit"])["rejected"] == {"broken": 5}


def rows_of(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {name: column[n] for name, column in columns.items()}
        for n in range(len(columns["input_ids"]))
    ]


def examples(rows: list[dict[str, Any]]) -> list[tuple[list[int], list[bool]]]:
    """The examples in packed rows, wherever they lie."""
    found = []
    for row in rows:
        for segment in range(1, row["segment_ids"].max() + 1):
            place = row["segment_ids"] == segment
            found.append((row["input_ids"][place].tolist(), row["loss_mask"][place].tolist()))
    return sorted(found)
