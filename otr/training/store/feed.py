"""From a packed store to one worker's micro-batches.

Shapes: B rows per micro-batch, S tokens per row.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from queue import Full, Queue
from threading import Event, Thread
from typing import Any

import torch

from otr.config import TrainConfig
from otr.training.store.order import Order, places_of
from otr.training.store.read import PackedStore
from otr.training.store.statistics import Statistic

AHEAD = 4  # micro-batches that are read ahead

Batch = dict[str, torch.Tensor]


def micro_batches(
    store: PackedStore, config: TrainConfig, *, step: int, rank: int, start: Statistic | None = None
) -> Iterator[Batch]:
    """Yield a worker's micro-batches for ever, from a step on.

    Args:
        store: the packed corpus.
        config: the run.
        step: optimizer steps that are done.
        rank: of the worker.
        start: log-probability of each target before training; None: not needed.

    Yields:
        `input_ids`, `loss_mask` and `segment_ids`, [B, S] each; also `start`, if it is given.
    """
    order = Order(
        [*store.index.rows_by_source().values()], config.seed, config.data.weights or None
    )
    shape = {
        "world": config.workers.count,
        "batch": config.global_batch_size,
        "micro": config.micro_batch_size,
    }

    def made() -> Iterator[Batch]:
        for number in count(step):
            for micro_batch in range(config.accumulation):
                places = places_of(number, micro_batch, rank, **shape)
                numbers = order.rows_at(places)
                columns = store.read(numbers)
                columns |= {} if start is None else {"start": start.of_rows(numbers)}
                yield {name: torch.from_numpy(column) for name, column in columns.items()}

    return _ahead(made())


def _ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """Yield items that a thread makes while earlier ones are used; its errors are raised here.

    The thread ends with this generator: one that still runs when Python ends can crash it.
    """
    made: Queue[tuple[Any, BaseException | None]] = Queue(AHEAD)
    closed = Event()

    def hand_over(item: Any, error: BaseException | None = None) -> None:
        while not closed.is_set():
            with suppress(Full):
                made.put((item, error), timeout=0.1)
                return

    def make() -> None:
        try:
            for item in items:
                hand_over(item)
                if closed.is_set():
                    return
        except BaseException as error:
            hand_over(None, error)

    # A daemon: no process waits for a read that hangs.
    thread = Thread(target=make, name="rows", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
        thread.join(timeout=1)
