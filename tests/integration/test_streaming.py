"""A corpus as a stream of packed rows on Ray Data: in order, from any position, without loss.

Real tasks read real files; only the tokenizer is tiny.
"""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otr.config import DataConfig, ModelConfig
from otr.models.tokenizer import load_tokenizer
from otr.training import corpus
from otr.training.audit import Audit
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration

COLUMNS = ("input_ids", "loss_mask", "segment_ids", "position", "audit")
FILES = (3000, 1, 1, 200, 1, 1)  # records; the first takes longest


def lines(count: int, completion: str = "1", start: int = 0) -> bytes:
    rows = ({"prompt": f"{i:06}?", "completion": completion} for i in range(start, start + count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig(str(make_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Corpus of six files of very different length, each one a part."""
    directory = tmp_path_factory.mktemp("several")
    for file, count in enumerate(FILES):
        (directory / f"{file}.jsonl").write_bytes(lines(count, f"file {file}"))
    return DataConfig((str(directory),), sequence_length=96)


def stream(config: DataConfig, model: ModelConfig, **start: int) -> dict[str, np.ndarray]:
    return collect(corpus.packed_dataset(config, model, **start))


def collect(rows: Any) -> dict[str, np.ndarray]:
    """Return the columns of a stream, read as a worker reads it."""
    batches = list(rows.iterator().iter_batches(batch_size=100))
    if not batches:
        return {}
    return {name: np.concatenate([batch[name] for batch in batches]) for name in COLUMNS}


@pytest.fixture(scope="module")
def whole(ray_cluster: None, several: DataConfig, model: ModelConfig) -> dict[str, np.ndarray]:
    return stream(several, model)


def test_files_that_are_read_at_once_come_in_order(
    whole: dict[str, np.ndarray], model: ModelConfig
) -> None:
    """The first file takes longest: without order, the others would come before it."""
    texts = load_tokenizer(model).batch_decode(whole["input_ids"])
    order = [text.split("file ")[1][0] for text in texts]
    assert order == sorted(order) and set(order) == set("012345")


def test_every_row_has_its_position(whole: dict[str, np.ndarray]) -> None:
    position = whole["position"]
    assert position.dtype == np.int32 and position.shape == (len(whole["audit"]), 3)
    batches = sorted({(part, batch) for part, batch, _ in position.tolist()})
    assert batches == [(0, 0), (0, 1), (0, 2), *((part, 0) for part in range(1, 6))]
    for part, batch in batches:
        mine = (position[:, :2] == (part, batch)).all(axis=1)
        assert position[mine, 2].tolist() == list(range(mine.sum()))
        assert [bool(audit) for audit in whole["audit"][mine]] == [True] + [False] * (
            mine.sum() - 1
        )


@pytest.mark.parametrize("start", [(0, 1), (0, 2), (0, 3), (3, 0), (5, 0)])
def test_a_stream_from_any_batch_is_the_end_of_the_whole_stream(
    whole: dict[str, np.ndarray], several: DataConfig, model: ModelConfig, start: tuple[int, int]
) -> None:
    part, batch = start
    rest = stream(several, model, part=part, batch=batch)
    later = [tuple(position[:2]) >= start for position in whole["position"].tolist()]
    assert 0 < sum(later) < len(later)
    for name in COLUMNS:
        assert np.array_equal(rest[name], whole[name][later]), name


def test_a_stream_from_past_the_last_batch_is_empty(
    ray_cluster: None, several: DataConfig, model: ModelConfig
) -> None:
    assert stream(several, model, part=5, batch=1) == {}
    with pytest.raises(ValueError, match="ends before part 6, it has 6"):
        corpus.packed_dataset(several, model, part=6)


def test_records_before_the_start_are_not_tokenized(
    several: DataConfig, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed, real = [], corpus._parsed

    def counting(text: Any) -> Any:
        parsed.append(text)
        return real(text)

    monkeypatch.setattr(corpus, "_parsed", counting)
    parts = corpus._parts(corpus.list_chunks(several.paths))
    task = {"part": np.array([0])}
    [columns] = corpus._read_and_pack(task, parts, (0, 2), several, model)
    assert b"".join(text + b"\n" for text in parsed) == lines(1000, "file 0", start=2000)
    assert (columns["position"][:, 1] == 2).all()


def test_more_files_than_tasks_are_shared_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "MAX_TASKS", 3)
    found = [corpus.SourceChunk("json", str(number)) for number in range(8)]
    parts = corpus._parts(found)
    assert [len(part) for part in parts] == [2, 3, 3]
    assert [piece for part in parts for piece in part] == found


def test_ray_packs_every_usable_example(
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    """Ray Data yields exactly the examples that plain Python finds."""
    for part in range(3):
        (tmp_path / f"{part}.jsonl").write_bytes(lines(50, start=50 * part) + b"broken\n")
    config = DataConfig((str(tmp_path),), sequence_length=128)
    first = stream(config, model)
    local = corpus.pack_locally(config, model, limit=1000)
    assert examples(first) == examples(local)
    audit = Audit(0.05)
    audit.add(first["audit"])
    assert (audit.records, audit.rejected) == (153, {"broken": 3})


def test_rows_come_before_the_whole_corpus_is_read(
    ray_cluster: None, tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file is held back until the first rows have come."""
    for file in range(4):
        (tmp_path / f"{file}.jsonl").write_bytes(lines(1200))
    arrived, given_up = tmp_path / "arrived", tmp_path / "given up"
    real = corpus._read_and_pack

    def hold_back(task: Any, *rest: Any) -> Iterator[Any]:  # runs in Ray's tasks
        while 3 in task["part"] and not (arrived.exists() or given_up.exists()):
            time.sleep(0.05)
        yield from real(task, *rest)

    monkeypatch.setattr(corpus, "_read_and_pack", hold_back)
    timer = threading.Timer(60, given_up.touch)
    timer.start()
    config = DataConfig((str(tmp_path / "*.jsonl"),), sequence_length=48)
    batches = iter(corpus.packed_dataset(config, model).iterator().iter_batches(batch_size=8))
    audit = Audit(0.0)
    audit.add(next(batches)["audit"])
    timer.cancel()
    assert not given_up.exists(), "nothing came before the whole corpus was read"
    assert audit.records < 4800
    arrived.touch()
    for batch in batches:
        audit.add(batch["audit"])
    assert audit.records == 4800


def test_a_batch_without_a_usable_record_still_has_its_audit(
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"broken\n" * 5)
    rows = stream(DataConfig((str(tmp_path),), sequence_length=64), model)
    assert len(rows["audit"]) == 1 and not rows["segment_ids"].any()
    assert json.loads(rows["audit"][0])["rejected"] == {"broken": 5}
    assert rows["position"].tolist() == [[0, 0, 0]]


def test_files_that_become_unreadable_raise_or_are_skipped(
    ray_cluster: None, tmp_path: Path, model: ModelConfig
) -> None:
    """One is truncated, one vanishes after the stream is planned; the others come completely."""
    (tmp_path / "0.jsonl").write_bytes(lines(1100))
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(lines(50))[:-20])
    (tmp_path / "2.jsonl").write_bytes(lines(1))
    (tmp_path / "3.jsonl").write_bytes(lines(70))
    planned = corpus.packed_dataset(DataConfig((str(tmp_path),), sequence_length=48), model)
    (tmp_path / "2.jsonl").unlink()
    rows = collect(planned)
    with pytest.raises(ValueError, match=r"^can't read .*/1\.jsonl\.gz: .* data\.skip_bad$") as one:
        Audit(0.0).add(rows["audit"])
    assert "\n" not in str(one.value)
    audit = Audit(0.0, skip_bad=True)
    audit.add(rows["audit"])
    audit.check()
    assert audit.rejected == {"unreadable": 2}
    truncated, deleted = audit.samples
    assert "1.jsonl.gz: Compressed file ended" in truncated["detail"]
    assert "2.jsonl: [Errno 2] No such file" in deleted["detail"]
    assert audit.records >= 1170 and len(examples(rows)) == audit.records
    in_part = rows["position"][:, 0]
    assert [rows["segment_ids"][in_part == part].any() for part in (0, 2, 3)] == [True, False, True]


def examples(columns: dict[str, np.ndarray]) -> list[tuple[list[int], list[bool]]]:
    """Return the examples in packed rows, sorted."""
    found = []
    for ids, mask, segments in zip(*(columns[name] for name in COLUMNS[:3]), strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            found.append((ids[inside].tolist(), mask[inside].tolist()))
    return sorted(found)
