"""Our contenders of the training benchmark: `otr.loop.loop.train` on packed rows, without Ray.

In: `Turns`, which has the case. Out: its turns, taken.

Shapes: B rows of a micro-batch.
"""

import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

import otr
from tests.benchmarks.train_data import OTR, make_model, make_rows
from tests.benchmarks.train_turns import Turns


class LastStep(Exception):
    """Raised in `report`: the loop would go on."""


def train(
    turns: Turns,
    objective: otr.Objective,
    rank: int = 0,
    ranks: int = 1,
    together: Callable[[], Any] = lambda: None,
) -> None:
    """Be one of `ranks`; they meet in `together` after each step."""
    from otr.loop.loop import train

    config = turns.case.config(objective, ranks)
    rows = make_rows(turns.case)
    model = make_model(turns.case, "auto")
    turns.count(model, rows)

    def report(metrics: dict[str, float], snapshot: Any) -> None:
        if torch.distributed.is_initialized() or ranks == 1:
            turns.loss = metrics["nll"]  # of the whole step
        last = turns.end()
        together()  # the others wait for the turn as well
        if last:
            raise LastStep

    turns.begin()
    try:
        train(model, _batches(rows, config.micro_batch_size, rank, ranks), config, report)
    except LastStep:
        return


def _batches(
    rows: dict[str, np.ndarray], size: int, rank: int, ranks: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Every `ranks`-th micro-batch; a spare step's at the end."""
    tensors = {name: torch.from_numpy(column) for name, column in rows.items()}
    starts = list(range(rank * size, len(rows["input_ids"]), ranks * size))
    for start in starts + starts:
        yield {name: tensor[start : start + size] for name, tensor in tensors.items()}


def train_ranks(turns: Turns, ranks: int, *, connected: bool) -> None:
    """OTR on several processes of one thread each; this one takes the turns for all.

    Those that are not `connected` average no gradients, each trains a model of its own: no way to
    share the steps is faster than that on the same machine.
    """
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as directory:
        place = f"file://{Path(directory) / 'rendezvous'}" if connected and ranks > 1 else ""
        context = multiprocessing.get_context("spawn")
        meeting = context.Barrier(ranks)
        others = [
            context.Process(
                target=_rank, args=(Turns(turns.case), rank, ranks, place, meeting), daemon=True
            )
            for rank in range(1, ranks)
        ]
        for process in others:
            process.start()
        _rank(turns, 0, ranks, place, meeting)
        for process in others:
            process.join()


def _rank(turns: Turns, rank: int, ranks: int, place: str, meeting: Barrier) -> None:
    torch.set_num_threads(1)
    if place:
        torch.distributed.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks)
    train(turns, OTR, rank, ranks, meeting.wait)
