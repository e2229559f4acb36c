"""Our contenders of the training benchmark: `otr.loop.loop.train` on packed rows, without Ray."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

import otr
from otr import MemoryConfig
from tests.benchmarks.train_data import OTR, make_model, make_rows
from tests.benchmarks.train_turns import Turns


class LastStep(Exception):
    """Raised in `report` to end the loop, which has one step more."""


def train(
    turns: Turns,
    objective: otr.Objective,
    rank: int = 0,
    ranks: int = 1,
    wait_for_all: Callable[[], Any] = lambda: None,
    *,
    compiled: bool = False,
) -> None:
    """Train as one of `ranks`; `wait_for_all` is a barrier after each step.

    If `compiled`, torch.compile compiles the decoder layers.
    """
    from otr.loop.loop import train

    config = turns.case.config(objective, ranks)
    config = dataclasses.replace(config, memory=MemoryConfig(compile=compiled))
    rows = make_rows(turns.case)
    model = make_model(turns.case, "auto")
    turns.count(model, rows)

    def report(metrics: dict[str, float], snapshot: Any) -> None:
        if torch.distributed.is_initialized() or ranks == 1:
            turns.loss = metrics["nll"]  # of the whole step
        last = turns.end()
        wait_for_all()  # the other ranks wait for the turn as well
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
    """Yield every `ranks`-th micro-batch, twice over, for the step more."""
    tensors = {name: torch.from_numpy(column) for name, column in rows.items()}
    starts = list(range(rank * size, len(rows["input_ids"]), ranks * size))
    for start in starts + starts:
        yield {name: tensor[start : start + size] for name, tensor in tensors.items()}


def train_ranks(turns: Turns, ranks: int, *, connected: bool) -> None:
    """Train OTR in several processes of one thread each; this one takes the turns for all.

    If they are not `connected`, each trains a model of its own. That is the upper bound for any
    distributed training on the same machine.
    """
    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as directory:
        address = f"file://{Path(directory) / 'rendezvous'}" if connected and ranks > 1 else ""
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(ranks)
        others = [
            context.Process(
                target=_rank, args=(Turns(turns.case), rank, ranks, address, barrier), daemon=True
            )
            for rank in range(1, ranks)
        ]
        for process in others:
            process.start()
        _rank(turns, 0, ranks, address, barrier)
        for process in others:
            process.join()


def _rank(turns: Turns, rank: int, ranks: int, address: str, barrier: Barrier) -> None:
    torch.set_num_threads(1)
    if address:
        torch.distributed.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=ranks
        )
    train(turns, OTR, rank, ranks, barrier.wait)
