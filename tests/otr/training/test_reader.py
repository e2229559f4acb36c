"""Each epoch has each row once, at any number of ranks, and a position leads to the next row."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from otr import Workers
from otr.loss.objective import Objective
from otr.training import reader
from otr.training.audit import Audit
from otr.training.reader import Reader, micro_batches
from tests.otr.runs import config, join_ranks

LENGTH = 8


class Corpus:
    """Two parts of packed rows in batches of four, each with an unusable row at its end.

    The tokens of a row are its number.
    """

    def __init__(self, rows: int = 11, rejected: int = 0) -> None:
        self.rejected, self.reads = rejected, 0
        numbers = np.arange(1, rows + 1)
        parts = (numbers[: rows // 2], numbers[rows // 2 :])
        self.parts = [[*np.split(part, range(4, len(part), 4)), np.zeros(1, int)] for part in parts]

    def __call__(self, part: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
        self.reads += 1
        for p, batches in enumerate(self.parts):
            for b, numbers in enumerate(batches):
                if (p, b) >= (part, batch) and len(numbers):
                    yield self._block(p, b, numbers)

    def _block(self, part: int, batch: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
        ids = np.repeat(numbers[:, None], LENGTH, axis=1).astype(np.int32)
        audit: dict[str, Any] = {"rows": 500, "rejected": {}, "samples": []}
        audit |= {"unused": {}, "remarks": {}}
        if self.rejected:
            audit["rejected"] = {"broken": self.rejected}
            audit["samples"] = [{"cause": "broken", "detail": "why", "row": "{", "place": ""}]
        return {
            "input_ids": ids,
            "loss_mask": ids > 0,
            "segment_ids": ids,
            "audit": np.array([json.dumps(audit)] + [""] * (len(ids) - 1), dtype=object),
            "position": np.array([(part, batch, row) for row in range(len(ids))], np.int32),
        }


@pytest.fixture(params=[1024, 5], ids=["one window", "windows of 5"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(reader, "WINDOW", request.param)
    return request.param


def numbers(reader: Reader, count: int) -> list[int]:
    rows = reader.take(count)
    assert rows["input_ids"].shape == (count, LENGTH)
    return rows["input_ids"][:, 0].tolist()


def test_every_epoch_has_each_row_once_in_an_order_of_its_own(window: int) -> None:
    seen = numbers(Reader(Corpus(), 0, Audit(0.05)), 44)
    epochs = [seen[start : start + 11] for start in (0, 11, 22, 33)]
    assert all(sorted(epoch) == list(range(1, 12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert numbers(Reader(Corpus(), 0, Audit(0.05)), 44) == seen
    assert numbers(Reader(Corpus(), 1, Audit(0.05)), 44) != seen


def test_any_position_leads_to_the_next_row(window: int) -> None:
    whole = numbers(Reader(Corpus(), 0, Audit(0.05)), 40)
    for taken in range(30):
        first = Reader(Corpus(), 0, Audit(0.05))
        if taken:
            assert numbers(first, taken) == whole[:taken]
        stored = json.loads(json.dumps(asdict(first.position)))
        again = Reader(Corpus(), 0, Audit(0.05), stored)
        assert numbers(again, 10) == whole[taken : taken + 10], taken


def test_a_resumed_reader_does_not_read_earlier_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WINDOW", 4)
    first = Reader(Corpus(rows=40), 0, Audit(0.05))
    first.take(25)
    assert first.position.start[0] == 1

    def stream(part: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
        assert part == 1, "the first part was read again"
        return Corpus(rows=40)(part, batch)

    Reader(stream, 0, Audit(0.05), asdict(first.position)).take(5)


def test_a_corpus_of_one_window_is_read_once() -> None:
    corpus = Corpus()
    numbers(Reader(corpus, 0, Audit(0.05)), 50)
    assert corpus.reads == 1


def test_a_corpus_smaller_than_a_batch_fills_one() -> None:
    assert sorted(numbers(Reader(Corpus(rows=3), 0, Audit(0.05)), 24)) == sorted([1, 2, 3] * 8)


def test_a_corpus_without_a_usable_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="no row that can be used"):
        Reader(Corpus(rows=0), 0, Audit(0.05)).take(1)


def test_rejected_records_are_counted_once_across_resumes(window: int) -> None:
    whole = Audit(0.5)
    Reader(Corpus(rejected=20), 0, whole).take(30)
    assert whole.complete and whole.records == 500 * 6 and whole.rejected["broken"] == 20 * 6
    for taken in (1, 6, 12):
        first = Reader(Corpus(rejected=20), 0, Audit(0.5))
        first.take(taken)
        counted = Audit(0.5)
        Reader(Corpus(rejected=20), 0, counted, asdict(first.position)).take(30)
        assert counted.counts() == whole.counts(), taken


def _rank(rank: int, directory: Path) -> None:
    join_ranks(rank, directory)
    run = config(directory, Objective("sft"), 1, micro_batch_size=4, workers=Workers(count=2))
    source = Reader(Corpus(), 0, Audit(0.05)) if rank == 0 else None
    run = replace(run, data=replace(run.data, sequence_length=LENGTH))
    stream = micro_batches(source, run)
    mine = [next(stream)["input_ids"][:, 0] for _ in range(3)]
    torch.save(torch.stack(mine), directory / f"{rank}.pt")


def test_ranks_share_the_rows_of_one_order(tmp_path: Path) -> None:
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    together = torch.stack(ranks, dim=1).flatten().tolist()  # micro-batch, rank, row
    assert together == numbers(Reader(Corpus(), 0, Audit(0.05)), 24)
