"""Corpora on disk, in every form that users have, become packed rows."""

import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from otr.config import DataConfig, ModelConfig, TrainConfig
from otr.model import load_tokenizer
from otr.training import corpus, sources
from otr.training.worker import micro_batches
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


GZ, ZST = gzip.compress(TEXT), zstandard.compress(TEXT)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", GZ[:-20]),
        ("cut.jsonl.zst", ZST[:-20]),
        ("second-frame-cut.jsonl.zst", ZST + ZST[:-20]),
        ("bad.jsonl.gz", b"no gzip at all"),
        ("garbled.jsonl.gz", GZ[:30] + b"garbage" + GZ[37:]),
        ("bad.jsonl.zst", b"no zstandard at all"),
        ("bad.parquet", b"PAR1 no parquet at all PAR1"),
        ("directory.jsonl", None),
    ],
)
def test_a_file_that_can_not_be_read_is_named(
    tmp_path: Path, model: ModelConfig, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    glob = str(tmp_path / f"*.{name.split('.', 1)[1]}")
    with pytest.raises(ValueError, match=rf"can't read .*/{name}: .*replace the file"):
        corpus.inspect(DataConfig((glob,), row_length=64), model)


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
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    """What Ray Data yields holds just the examples that plain Python finds."""
    for part in range(3):
        (tmp_path / f"{part}.jsonl").write_bytes(TEXT + b"broken\n")
    config = DataConfig((str(tmp_path),), row_length=128)
    first = corpus.packed(config, model).take_all()
    local = corpus.packed_locally(config, model, config.paths, limit=1000)
    assert examples(first) == examples(rows_of(local))
    audit = corpus.Audit(0.05)
    audit.add(row["audit"] for row in first)
    assert (audit.rows, audit.rejected) == (153, {"broken": 3})


@pytest.mark.integration
def test_files_read_at_once_come_in_their_order(
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    """The first file takes longest: whatever came as it was ready would come before it."""
    for file, count in enumerate((3000, 1, 1, 200, 1, 1)):
        row = json.dumps({"prompt": "Which?", "completion": f"file {file}"})
        (tmp_path / f"{file}.jsonl").write_text(f"{row}\n" * count)
    stream = corpus.packed(DataConfig((str(tmp_path),), row_length=64), model)
    tokenizer = load_tokenizer(model)
    orders = []
    for _ in range(2):
        batches = stream.iterator().iter_batches(batch_size=100)
        ids = np.concatenate([batch["input_ids"] for batch in batches])
        texts = tokenizer.batch_decode(ids)
        orders.append([text.split("file ")[1][0] for text in texts])
    assert orders[0] == orders[1] == sorted(orders[0])
    assert set(orders[0]) == set("012345")


@pytest.mark.integration
def test_training_begins_before_the_corpus_is_read(
    ray_cluster: None, tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file is withheld until the first micro-batch has come."""
    for file in range(4):
        lines = [json.dumps({"prompt": f"{i:06}?", "completion": "1"}) for i in range(1200)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(lines))
    came, given_up = tmp_path / "came", tmp_path / "given up"
    real = corpus._read_and_pack

    def withholding(batch: Any, found: Any, *rest: Any) -> Iterator[Any]:  # runs in Ray's tasks
        for number in batch["piece"]:
            while number == 3 and not (came.exists() or given_up.exists()):
                time.sleep(0.05)
            yield from real({"piece": [number]}, found, *rest)

    monkeypatch.setattr(corpus, "_read_and_pack", withholding)
    timer = threading.Timer(60, given_up.touch)
    timer.start()
    data = DataConfig((str(tmp_path / "*.jsonl"),), row_length=48)
    run = TrainConfig(model, data, step_rows=8, micro_rows=8)
    audit = corpus.Audit(0.0)
    stream = micro_batches(corpus.packed(data, model).iterator(), run, audit)
    next(stream)
    timer.cancel()
    assert not given_up.exists(), "nothing came before the whole corpus was read"
    assert audit.rows < 4800
    came.touch()
    rest = itertools.takewhile(lambda _: not audit.complete, stream)
    assert sum(len(batch["input_ids"]) for batch in rest) >= 4792 - 8
    assert audit.rows == 4800


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
