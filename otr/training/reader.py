"""From the stream of packed rows to each worker's micro-batches, resumable at every row.

Every epoch has each packed row once, in an order of its own; epochs follow each other for ever.
Rank 0 reads and sends each rank its rows, so the order does not depend on the number of ranks. A
`StreamPosition` says which row comes next.

The corpus is shuffled in windows of WINDOW packed rows. Row i of a step is row i % (B * ranks) of
micro-batch i // (B * ranks).

Shapes: B rows per micro-batch, S sequence length.
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
from otr.training.corpus import stream_packed

COLUMNS = ("input_ids", "loss_mask", "segment_ids")
WINDOW = 1024  # packed rows that are shuffled together

Arrays = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]
Stream = Callable[[int, int], Iterable[Arrays]]
"""Function from a part and a batch to the corpus from there on, in blocks of up to WINDOW rows."""


@dataclass(frozen=True)
class StreamPosition:
    """Position of the next packed row in the endless stream of epochs.

    Checkpoints store it as JSON; the names of its fields are part of that format.
    """

    epoch: int = 0
    window: int = 0
    """Number of the window within the epoch."""
    start: Sequence[int] = (0, 0, 0)
    """First row of the window: part of the corpus, batch within the part, row within the batch."""
    used: int = 0
    """Rows of the window that have been taken."""
    audit: dict[str, Any] = field(default_factory=dict)
    """Counts of the audit before the window."""


class Reader:
    """Packed rows of a corpus, epoch after epoch. Reading begins on construction.

    Args:
        stream: source of the rows.
        seed: seed of the order of the rows.
        audit: counts what is read in the first epoch.
        position: where to begin: a `StreamPosition` as a dict.
    """

    def __init__(
        self, stream: Stream, seed: int, audit: Audit, position: Mapping[str, Any] | None = None
    ) -> None:
        self.stream, self.seed, self.audit = stream, seed, audit
        self.position = (
            StreamPosition(**position) if position else StreamPosition(audit=audit.counts())
        )
        audit.restore(self.position.audit)
        self._windows = _Prefetch(self._shuffled_windows(self.position))
        self._window: Arrays | None = None

    def take(self, count: int) -> Arrays:
        """Return the next `count` rows, [count, S] each.

        Raises:
            ValueError: the corpus has no row that can be used.
        """
        parts: list[Arrays] = []
        missing = count
        while missing:
            if self._window is None:
                self.position, self._window = next(self._windows)
            used = self.position.used
            parts.append({n: c[used : used + missing] for n, c in self._window.items()})
            got = len(parts[-1]["input_ids"])
            missing -= got
            self.position = replace(self.position, used=used + got)
            if not got:
                self._window = None
        return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}

    def _shuffled_windows(
        self, position: StreamPosition
    ) -> Iterator[tuple[StreamPosition, Arrays]]:
        """Yield (position, rows) of each window from `position` on."""
        while True:
            # With used > 0, an earlier run has found usable rows in this epoch.
            usable = position.used
            only: Arrays | None = None
            for window in self._windows_in_order(position.start):
                start = window["position"][0].tolist()
                position = replace(position, start=start, audit=self.audit.counts())
                self.audit.add(window["audit"])
                order = np.random.default_rng([self.seed, position.epoch, position.window])
                rows = order.permutation(np.flatnonzero(window["segment_ids"][:, 0]))
                usable += len(rows)
                yield position, {name: window[name][rows] for name in COLUMNS}
                only = window if position.window == 0 else None
                position = replace(position, window=position.window + 1, used=0)
            self.audit.complete = True
            if not usable:
                self.audit.check()  # raises with the cause, if there is one
                raise ValueError("the corpus has no row that can be used: add data")
            position = StreamPosition(position.epoch + 1)
            if only is not None:  # the corpus fits in one window: read it only once
                self.stream = _constant_stream(only)

    def _windows_in_order(self, start: Sequence[int]) -> Iterator[Arrays]:
        """Yield WINDOW rows at a time from `start` on; the last window has what is left."""
        left: Arrays | None = None
        part, batch, skip = start
        for block in self.stream(part, batch):
            rows = len(block["position"])
            block = {name: block[name][skip:] for name in (*COLUMNS, "position", "audit")}
            skip = max(0, skip - rows)
            if left is not None:
                block = {name: np.concatenate([left[name], block[name]]) for name in block}
            while len(block["position"]) >= WINDOW:
                yield {name: column[:WINDOW] for name, column in block.items()}
                block = {name: column[WINDOW:] for name, column in block.items()}
            left = block
        if left is not None and len(left["position"]):
            yield left


class _Prefetch(Iterator[Any]):
    """Iterator that makes its next item in a thread while the last one is used.

    It starts at once. The thread is a daemon: no process waits for it to end.
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


def _constant_stream(block: Arrays) -> Stream:
    return lambda part, batch: [block]


def corpus_stream(config: TrainConfig) -> Stream:
    """Return the stream of the packed training corpus."""
    return lambda part, batch: stream_packed(config.data, config.model, part, batch, WINDOW)


def micro_batches(reader: Reader | None, config: TrainConfig) -> Iterator[Batch]:
    """Yield this rank's micro-batches for ever.

    Every rank iterates in step with the others; only rank 0 has a reader.
    """
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
