"""The training loop: the seam between the method and whatever feeds and watches it.

In: a model, an iterable of micro-batches (contract 1, [B, S] each) and a `TrainConfig`. Out:
metrics and checkpoint directories, through `report`. In a test the batches are a list and `report`
appends; under Ray they are a shard's iterator and `ray.train.report`.

Shapes: B rows, S row length, T tokens, D width.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from otr.checkpoint import Checkpoints, load_checkpoint
from otr.config import TrainConfig
from otr.evaluate import evaluate
from otr.optim import learning_rate, make_optimizer
from otr.policy import Batch, Policy

Report = Callable[[dict[str, float], str | None], Any]


def train(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    config: TrainConfig,
    report: Report,
    *,
    checkpoints: Checkpoints | None = None,
    validation: Sequence[Batch] = (),
) -> None:
    """Take `config.max_steps` optimiser steps.

    Every rank calls this with its own micro-batches; each step takes `config.accumulation` of them.
    The loss is the sum over targets divided by their number over all ranks and micro-batches.

    Args:
        model: on its device; trained in place.
        batches: this rank's micro-batches in order, the same ones again on resume.
        config: the run.
        report: called by every rank with metrics of all ranks, and on rank 0 with the directory of
            a new checkpoint, None otherwise.
        checkpoints: where they go and which one to continue (None: nothing is saved).
        validation: this rank's micro-batches to measure on, if `config.data.validation` names any.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; the weights are untouched.
        ValueError: the batches end before `max_steps`.
    """
    optimizer = make_optimizer(model, config.optim)
    step = 0
    if checkpoints is not None and checkpoints.resume_from is not None:
        state = load_checkpoint(checkpoints.resume_from)
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    policy: nn.Module = Policy(model, config.objective)
    policy = DistributedDataParallel(policy) if _world() > 1 else policy
    steps = _steps(batches, config, skip=step)
    model.train()
    clock, tokens = time.perf_counter(), 0.0
    while step < config.max_steps:
        lr = learning_rate(config.optim, step, config.max_steps)
        metrics = _step(policy, next(steps), optimizer, config, step, lr)
        step += 1
        tokens += metrics.pop("tokens")
        last = step == config.max_steps
        directory = None
        saves = last or (config.save_every > 0 and step % config.save_every == 0)
        if saves and _rank() == 0 and checkpoints is not None:
            state = {"step": step, "optimizer": optimizer.state_dict()}
            directory = str(checkpoints.save(step, model, state))
        if saves or step == 1 or step % config.log_every == 0:
            metrics["tokens_per_second"] = tokens / (time.perf_counter() - clock)
            # By the config and not by the rows: a rank without any must meet the others as well.
            if config.data.validation and (last or step % config.eval_every == 0):
                metrics |= evaluate(model, validation, config.model.dtype)
            report({"step": step, "lr": lr, **metrics}, directory)
            clock, tokens = time.perf_counter(), 0.0


def _step(
    policy: nn.Module,
    micro: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    lr: float,
) -> dict[str, float]:
    """One optimiser step; the metrics are means over the step's targets on all ranks."""
    device = next(policy.parameters()).device
    micro = [{k: v.to(device, non_blocking=True) for k, v in batch.items()} for batch in micro]
    count = _count(micro, lambda batch: batch["loss_mask"][:, 1:])
    if count == 0:
        raise ValueError(f"step {step + 1} has no token to predict: its rows are empty")
    seed = config.seed * 1_000_003 + step  # torch's CPU generators keep 32 bits of it
    rank, world = _rank(), _world()
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for i, batch in enumerate(micro):
        sync = i == len(micro) - 1 or world == 1
        first_row = (i * world + rank) * len(batch["input_ids"])
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=config.model.dtype == "bfloat16")
        no_sync = nullcontext() if sync else cast(DistributedDataParallel, policy).no_sync()
        with no_sync, bf16:
            out = policy(batch, seed, first_row)
            # DDP averages the gradients of the ranks; their sum is what the step wants.
            (out.loss_sum * (world / count)).backward()
        sums = [out.loss_sum, out.nll_sum, out.reward_sum, out.hit_sum, out.entropy_sum]
        totals += torch.stack([s.detach().double() for s in sums])
    norm = nn.utils.clip_grad_norm_(policy.parameters(), config.optim.max_grad_norm)
    loss, nll, reward, hits, entropy = (_sum(totals) / count).tolist()
    grad_norm = float(norm)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise FloatingPointError(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}; lower optim.lr "
            f"(now {lr:.2g}) or look at the data"
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": loss,
        "nll": nll,
        "reward": reward,
        "hit_rate": hits,
        "entropy": entropy,
        "grad_norm": grad_norm,
        "tokens": _count(micro, lambda batch: batch["segment_ids"] > 0),
    }


def _steps(batches: Iterable[Batch], config: TrainConfig, *, skip: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimiser step, after the first `skip` steps."""
    remaining = itertools.islice(batches, skip * config.accumulation, None)
    for step in range(skip, config.max_steps):
        micro = list(itertools.islice(remaining, config.accumulation))
        if len(micro) < config.accumulation:
            raise ValueError(
                f"the data ended after step {step} of {config.max_steps}: "
                "add data or lower max_steps"
            )
        yield micro


def _count(micro: Sequence[Batch], marked: Callable[[Batch], Tensor]) -> float:
    """Tokens marked in a step, over its micro-batches and all ranks."""
    return _sum(torch.stack([marked(batch).sum() for batch in micro]).sum().double()).item()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sum(value: Tensor) -> Tensor:
    """Over all ranks."""
    if _world() > 1:
        dist.all_reduce(value)
    return value
