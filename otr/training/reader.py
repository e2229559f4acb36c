"""From the stream of packed rows to each worker's micro-batches, with a place to go on from.

In: a `TrainConfig`. Out: micro-batches (contract 1, [B, S] each) for ever: every epoch has each row
once, in an order of its own. Rank 0 reads, and hands each rank its rows; so the order of the rows
does not depend on how many ranks there are. A `Place` says which row comes next.

The corpus comes in windows of WINDOW packed rows that are shuffled together. Row i of a step is
row i % (B * ranks) of micro-batch i // (B * ranks).

Shapes: B rows of a micro-batch, S row length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from otr.config import TrainConfig
from otr.training.audit import Audit
from otr.training.corpus import stream

COLUMNS = ("input_ids", "loss_mask", "segment_ids")
WINDOW = 1024  # packed rows that are shuffled together

Arrays = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]
Stream = Callable[[int, int], Iterable[Arrays]]
"""The corpus from a part and batch on, in blocks of up to WINDOW rows."""


@dataclass(frozen=True)
class Place:
    """Of the next row: so many rows into a window of an epoch, whose first row is at `start`."""

    epoch: int = 0
    window: int = 0
    start: Sequence[int] = (0, 0, 0)
    """Part of the corpus, batch within the part, row within the batch."""
    used: int = 0
    """Rows of the window that have been taken."""
    audit: dict[str, Any] = field(default_factory=dict)
    """Counts of the audit before the window."""


class _Ahead(Iterator[Any]):
    """An iterator whose next item is made while the last one is used, beginning at once.

    By a thread that no process waits for at its end.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self._made: Queue[tuple[Any, BaseException | None]] = Queue(1)
        Thread(target=self._make, args=(items,), name="reader", daemon=True).start()

    def _make(self, items: Iterator[Any]) -> None:
        try:
            for item in items:
                self._made.put((item, None))
        except BaseException as error:  # raised where the item is wanted
            self._made.put((None, error))

    def __next__(self) -> Any:
        item, error = self._made.get()
        if error is not None:
            raise error
        return item


class Reader:
    """The rows of a corpus, epoch after epoch; it begins to read when it is made.

    Args:
        stream: where the rows come from.
        seed: of the order of the rows.
        audit: counts what is read in the first epoch.
        place: to begin at, as `asdict` made it of a `Place`.
    """

    def __init__(
        self, stream: Stream, seed: int, audit: Audit, place: Mapping[str, Any] | None = None
    ) -> None:
        self.stream, self.seed, self.audit = stream, seed, audit
        self.place = Place(**place) if place else Place(audit=audit.counts())
        audit.restore(self.place.audit)
        self._ahead = _Ahead(self._from(self.place))
        self._window: Arrays | None = None

    def take(self, count: int) -> Arrays:
        """The next `count` rows, [count, S] each.

        Raises:
            ValueError: the corpus has no row that can be used.
        """
        parts: list[Arrays] = []
        missing = count
        while missing:
            if self._window is None:
                self.place, self._window = next(self._ahead)
            used = self.place.used
            parts.append({n: c[used : used + missing] for n, c in self._window.items()})
            got = len(parts[-1]["input_ids"])
            missing -= got
            self.place = replace(self.place, used=used + got)
            if not got:
                self._window = None
        return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}

    def _from(self, place: Place) -> Iterator[tuple[Place, Arrays]]:
        """Shuffled windows, each with its place; the first one with that it was asked for."""
        while True:
            useful = place.used  # else the epoch before would have found that there is none
            whole: Arrays | None = None
            for window in self._unshuffled(place.start):
                start = window["place"][0].tolist()
                place = replace(place, start=start, audit=self.audit.counts())
                self.audit.add(window["audit"])
                order = np.random.default_rng([self.seed, place.epoch, place.window])
                rows = order.permutation(np.flatnonzero(window["segment_ids"][:, 0]))
                useful += len(rows)
                yield place, {name: window[name][rows] for name in COLUMNS}
                whole = window if place.window == 0 else None
                place = replace(place, window=place.window + 1, used=0)
            self.audit.complete = True
            if not useful:
                self.audit.check()  # says why
                raise ValueError("the corpus has no row that can be used: add data")
            place = Place(place.epoch + 1)
            if whole is not None:  # a corpus of one window is read once
                self.stream = _of(whole)

    def _unshuffled(self, start: Sequence[int]) -> Iterator[Arrays]:
        """WINDOW rows at a time from `start` on, the last one with what is left."""
        left: Arrays | None = None
        part, batch, skip = start
        for block in self.stream(part, batch):
            rows = len(block["place"])
            block = {name: block[name][skip:] for name in (*COLUMNS, "place", "audit")}
            skip = max(0, skip - rows)
            if left is not None:
                block = {name: np.concatenate([left[name], block[name]]) for name in block}
            while len(block["place"]) >= WINDOW:
                yield {name: column[:WINDOW] for name, column in block.items()}
                block = {name: column[WINDOW:] for name, column in block.items()}
            left = block
        if left is not None and len(left["place"]):
            yield left


def _of(block: Arrays) -> Stream:
    return lambda part, batch: [block]


def corpus_stream(config: TrainConfig) -> Stream:
    """The packed training corpus, as Ray Data makes it or this host keeps it."""
    return lambda part, batch: stream(config.data, config.model, part, batch, WINDOW)


def micro_batches(reader: Reader | None, config: TrainConfig) -> Iterator[Batch]:
    """This rank's, for ever. Every rank calls this together; only rank 0 has a reader."""
    shape = (config.micro_batch_size, config.data.sequence_length)
    world = config.workers.count
    dtypes = {"input_ids": torch.int32, "loss_mask": torch.bool, "segment_ids": torch.int32}
    while True:
        rows: Arrays = {} if reader is None else reader.take(config.micro_batch_size * world)
        whole = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in rows}
        if world == 1:
            yield whole
            continue
        mine = {name: torch.empty(shape, dtype=dtype) for name, dtype in dtypes.items()}
        for name, column in mine.items():
            parts: list[Any] | None = None
            if reader is not None:
                parts = [part.contiguous() for part in whole[name].split(config.micro_batch_size)]
            dist.scatter(column, parts, src=0)
        yield mine
