"""From a packed store to one worker's micro-batches.

Shapes: B rows per micro-batch, S tokens per row.
"""

from collections.abc import Iterator
from itertools import count
from queue import Queue
from threading import Thread
from typing import Any

import torch

from otr.config import TrainConfig
from otr.training.store.order import Order, places_of
from otr.training.store.read import PackedStore

AHEAD = 4  # micro-batches that are read ahead

Batch = dict[str, torch.Tensor]


def micro_batches(
    store: PackedStore, config: TrainConfig, *, step: int, rank: int
) -> Iterator[Batch]:
    """Yield a worker's micro-batches for ever, from a step on.

    Args:
        store: the packed corpus.
        config: the run.
        step: optimizer steps that are done.
        rank: of the worker.

    Yields:
        `input_ids`, `loss_mask` and `segment_ids`, [B, S] each.
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
                columns = store.read(order.rows_at(places))
                yield {name: torch.from_numpy(column) for name, column in columns.items()}

    return _ahead(made())


def _ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """Yield items that a thread makes while earlier ones are used; its errors are raised here."""
    made: Queue[tuple[Any, BaseException | None]] = Queue(AHEAD)

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
        except BaseException as error:
            made.put((None, error))

    # A daemon: no process waits for it to end.
    Thread(target=make, name="rows", daemon=True).start()
    while True:
        item, error = made.get()
        if error is not None:
            raise error
        yield item
