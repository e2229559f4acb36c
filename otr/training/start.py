"""What the model before training predicts, computed once per packed store and model.

All runs share it, whatever their number of workers: it lies beside the store (`store.statistics`).

Shapes: N packed rows, S tokens per row, T target tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from jaxtyping import Float

from otr.config import MemoryConfig, TrainConfig
from otr.training.store import version
from otr.training.store.read import PackedStore, local_copy
from otr.training.store.statistics import (
    BLOCK_ROWS,
    Statistic,
    block_rows,
    missing_blocks,
    write_block,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from otr.loop.policy import Policy

LINES = 4  # on the terminal while it is computed


def start_of(
    path: str,
    store: PackedStore,
    config: TrainConfig,
    load: Callable[[], "PreTrainedModel"],
    run: str,
) -> Statistic:
    """Return each target's log-probability before training; compute it unless it is stored.

    Every rank calls this and computes its share of the blocks. Runs that need the same at the same
    time share the work: each begins elsewhere, and leaves out what has been stored meanwhile.

    Args:
        path: of the store, a path or URI that all workers reach.
        store: the store on this host.
        config: the run.
        load: loads the model before training; under FSDP only rank 0's needs weights.
        run: the run's directory, which decides where it begins.
    """
    name = f"start_{version.digest(version.of_start(config))[:16]}"
    missing = _of_rank_0(lambda: missing_blocks(path, store.index, name))
    if missing:
        turn = int(version.digest(run), 16) % len(missing)
        todo = [*missing[turn:], *missing[:turn]]
        _compute(_Start(path, store, name, config), todo, load())
        local_copy(path)  # brings what is new from an object store
    return Statistic(store, name)


@dataclass(frozen=True)
class _Start:
    """A statistic of a packed store that is to be computed: the targets' log-probabilities."""

    path: str
    store: PackedStore
    name: str
    config: TrainConfig


def _compute(of: _Start, todo: Sequence[int], model: "PreTrainedModel") -> None:
    """Compute and store blocks of rows, one per rank at a time."""
    from otr.loop import parallel
    from otr.loop.policy import Policy
    from otr.loss.objective import Objective

    policy, sharded = Policy(model, Objective("sft")), of.config.memory.strategy.startswith("fsdp")
    if sharded:
        parallel.wrap(policy, replace(of.config, memory=MemoryConfig(of.config.memory.strategy)))
    else:
        policy.to(policy.device)
    policy.eval()
    rank, world = parallel.rank(), parallel.world_size()
    rounds, reported = -(-len(todo) // world), -1
    for number in range(rounds):
        if reported < (reported := number * LINES // rounds):
            text = "the targets' log-probabilities before training, once for all runs"
            ray.train.report({"step": 0, "note": f"computes {text}: {number / rounds:.0%} done"})
        left = _of_rank_0(lambda: missing_blocks(of.path, of.store.index, of.name))
        mine = [block for block in todo[number * world :][:world][rank : rank + 1] if block in left]
        rows = block_rows(of.store.index, mine[0]) if mine else range(0)
        # Under fsdp all ranks take part in every forward pass.
        passes = -(-(BLOCK_ROWS if sharded else len(rows)) // of.config.micro_batch_size)
        values = _log_probabilities(policy, of, rows, passes)
        for block in mine:
            write_block(of.path, of.name, block, values)
    if world > 1:
        dist.barrier()


@torch.no_grad()
def _log_probabilities(
    policy: "Policy", of: _Start, rows: range, passes: int
) -> Float[np.ndarray, "N S"]:
    """Return each target's log-probability, 0 elsewhere, in this many forward passes."""
    from otr.loop.batch import PackedBatch
    from otr.loop.evaluate import empty_batch

    size, found = of.config.micro_batch_size, np.zeros((len(rows), of.store.index.sequence_length))
    for first in range(0, passes * size, size):
        some = rows[first : first + size]
        columns = of.store.read(np.array(some)) if some else {}
        batch = {name: torch.from_numpy(column) for name, column in columns.items()}
        packed = PackedBatch.of(batch or empty_batch())
        with policy.precision(of.config.model.dtype):
            nll_T = policy.predict(packed.to(policy.device)).nll_T.cpu()
        place_T = (packed.layout.place_N[packed.index_T] + 1).numpy()
        found[first : first + len(some)].reshape(-1)[place_T] = -nll_T.clamp(min=0).numpy()
    return found


def _of_rank_0(find: Callable[[], Any]) -> Any:
    """Return what rank 0 finds."""
    if not dist.is_initialized():
        return find()
    found = [find() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]
