"""The training loop: the seam between the method and whatever feeds and watches it.

In: a model, an iterable of micro-batches (contract 1, [B, S] each) and a `TrainConfig`. Out:
metrics and snapshots, through `report`. In a test the batches are a list and `report` appends;
under Ray they come from a `Reader` and `report` is `ray.train.report`.

Shapes: B rows, S row length, T tokens, D width.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from otr.config import TrainConfig
from otr.loop import parallel
from otr.loop.checkpoint import Snapshot, Staging, load_checkpoint
from otr.loop.evaluate import evaluate
from otr.loop.policy import Batch, Policy
from otr.optim import learning_rate, make_optimizer

Report = Callable[[dict[str, float], Snapshot | None], Any]


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite; the weights are untouched by it."""

    step: int
    loss: float
    grad_norm: float
    rows: list[int]
    """Numbers within the step, from 0, of rows whose own loss is not finite; on all ranks."""
    batches: Sequence[Batch]
    """This rank's micro-batches of the step."""

    def numbered(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """This rank's rows: number, input_ids [S], segment_ids [S]."""
        for i, batch in enumerate(self.batches):
            numbers = itertools.count(_first_row(i, batch))
            yield from zip(numbers, batch["input_ids"], batch["segment_ids"], strict=False)


@dataclass(frozen=True)
class Hooks:
    """What may happen in a run besides its steps; each is called on every rank."""

    should_stop: Callable[[], bool] = lambda: False
    """Asked once a step, on every rank; where any says so, all save and end the run."""
    before_snapshot: Callable[[], None] = lambda: None
    """The one before is no longer needed when it returns."""
    on_bad_step: Callable[[BadStep], str] = lambda bad: ""
    """Keeps the rows; returns where, for the message."""


def train(  # noqa: PLR0913 - all but what a run is made of by keyword
    model: PreTrainedModel,
    batches: Iterable[Batch],
    config: TrainConfig,
    report: Report,
    *,
    resume_from: Path | None = None,
    validation: Sequence[Batch] = (),
    hooks: Hooks | None = None,
) -> None:
    """Take optimiser steps up to `config.max_steps`. Every rank calls this.

    The loss is the sum over targets divided by their number over all ranks and micro-batches.

    Args:
        model: trained in place (but for fsdp), on this process's GPU if there is one.
        batches: this rank's micro-batches, `config.accumulation` a step, from the first one that is
            still to be taken.
        config: the run.
        report: called with metrics of all ranks, and with a snapshot where one is to be written.
        resume_from: a checkpoint, whose weights the model already has.
        validation: this rank's micro-batches to measure on, if `config.data.validation` names any.
        hooks: what else is called.

    Raises:
        FloatingPointError: the loss or its gradient is not finite and `config.data.skip_bad` is
            off; the weights are untouched.
        ValueError: the batches end before `max_steps`.
    """
    hooks = hooks or Hooks()
    policy = parallel.wrap(Policy(model, config.objective), config)
    optimizer = make_optimizer(policy, config.optim)
    step, skipped = _taken(policy, optimizer, resume_from)
    steps, staging = _Steps(batches, config, step), Staging()
    policy.train()
    clock, tokens, stop = time.perf_counter(), 0.0, False
    while step < config.max_steps and not stop:
        lr = learning_rate(config.optim, step, config.max_steps)
        metrics = _step(policy, next(steps), optimizer, (config, step, lr), hooks)
        step += 1
        tokens += metrics.pop("tokens")
        skipped += int(metrics.pop("skipped"))
        stop = metrics.pop("stop") > 0
        last = step == config.max_steps
        saves = (
            last
            or stop
            or (config.checkpoint_interval > 0 and step % config.checkpoint_interval == 0)
        )
        if saves or step == 1 or step % config.log_interval == 0:
            seconds = time.perf_counter() - clock
            metrics |= {"tokens_per_second": tokens / seconds, "data_wait": steps.wait / seconds}
            metrics |= {"skipped_steps": skipped} if skipped else {}
            # By the config and not by the rows: a rank without any must meet the others as well.
            if config.data.validation and (last or step % config.eval_interval == 0):
                metrics |= evaluate(parallel.plain(policy), validation, config.model.dtype)
            snapshot = None
            if saves:
                snapshot = take_snapshot(policy, optimizer, staging, (step, skipped), hooks)
            if snapshot is not None and last:
                snapshot.probe = _probe(policy, steps.micro[0], config)
            report({"step": step, "lr": lr, **metrics}, snapshot)
            clock, tokens, steps.wait = time.perf_counter(), 0.0, 0.0


def _taken(
    policy: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path | None
) -> tuple[int, int]:
    """Steps before this start, and how many of them were skipped."""
    if checkpoint is None:
        return 0, 0
    parallel.load_optimizer(policy, optimizer, checkpoint)
    state = load_checkpoint(checkpoint)
    return state["step"], state["skipped_steps"]


def take_snapshot(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    staging: Staging,
    done: tuple[int, int],
    hooks: Hooks,
) -> Snapshot:
    """Copy the state after `done` = (steps, of which were skipped)."""
    began = time.perf_counter()
    hooks.before_snapshot()
    step, skipped = done
    snapshot = Snapshot(
        step=step,
        model=parallel.plain(policy).model,
        weights=parallel.whole_weights(policy, staging),
        optimizer=parallel.optimizer_part(policy, optimizer, staging),
        progress={"skipped_steps": skipped},
    )
    snapshot.stall_seconds = time.perf_counter() - began
    return snapshot


def _probe(policy: nn.Module, batch: Batch, config: TrainConfig) -> tuple[Batch, float, float]:
    """The NLL of a micro-batch by the trained model, and how closely it can be repeated."""
    own, half = parallel.plain(policy), config.model.dtype == "bfloat16"
    own.eval()
    with torch.no_grad(), own.precision(config.model.dtype):
        there = {name: column.to(own.device) for name, column in batch.items()}
        nll, _, tokens, *_ = own.score(there).tolist()
    own.train()
    # A wrong weight costs nats a token; rounding less than this, also where all is memorised.
    return batch, nll, (0.05 if half else 1e-3) * max(nll, 0.1 * tokens)


def _step(
    policy: nn.Module,
    micro: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    place: tuple[TrainConfig, int, float],
    hooks: Hooks,
) -> dict[str, float]:
    """One optimiser step; the metrics are means over the step's targets on all ranks."""
    config, step, lr = place
    own = parallel.plain(policy)
    device = own.device
    micro = [{k: v.to(device, non_blocking=True) for k, v in batch.items()} for batch in micro]
    marked = [(batch["loss_mask"][:, 1:], batch["segment_ids"] > 0) for batch in micro]
    numbers = [sum(mask.sum() for mask in masks) for masks in zip(*marked, strict=True)]
    counts = [*map(float, numbers), float(hooks.should_stop())]
    count, tokens, stop = parallel.total(
        torch.tensor(counts, dtype=torch.float64, device=device)
    ).tolist()
    if count == 0:
        raise ValueError(f"step {step + 1} has no token to predict: its rows are empty")
    seed = config.seed * 1_000_003 + step  # torch's CPU generators keep 32 bits of it
    rank, world = parallel.rank(), parallel.world()
    torch.manual_seed(seed * world + rank)  # of dropout; a resumed run goes on with the same
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for i, batch in enumerate(micro):
        last = i == len(micro) - 1
        with parallel.accumulates(policy, last=last), own.precision(config.model.dtype):
            out = policy(batch, seed, _first_row(i, batch))
            # The gradients of the ranks are averaged; their sum is what the step wants.
            (out.loss_sum * (world / count)).backward()
        sums = [out.loss_sum, out.nll_sum, out.reward_sum, out.hit_sum, out.entropy_sum]
        totals += torch.stack([s.detach().double() for s in sums])
    grad_norm = parallel.clip(policy, config.optim.max_grad_norm)
    loss, nll, reward, hits, entropy = (parallel.total(totals) / count).tolist()
    counted = {"tokens": tokens, "stop": stop}
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        optimizer.zero_grad(set_to_none=True)
        _meet_bad_step(policy, micro, (config, step, loss, grad_norm), hooks)
        return {**counted, "skipped": 1}
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
        **counted,
        "skipped": 0,
    }


def _meet_bad_step(
    policy: nn.Module,
    micro: Sequence[Batch],
    what: tuple[TrainConfig, int, float, float],
    hooks: Hooks,
) -> None:
    """Find the rows, hand them over; raise unless such steps are skipped."""
    config, step, loss, grad_norm = what
    rows = _bad_rows(policy, micro, config)
    kept = hooks.on_bad_step(BadStep(step + 1, loss, grad_norm, rows, micro))
    if config.data.skip_bad:
        return
    numbers = ", ".join(map(str, rows))
    whose = f"its rows {numbers} (from 0)" if rows else "no row alone"
    raise FloatingPointError(
        f"step {step + 1}: loss {loss}, gradient norm {grad_norm}, from {whose}; "
        f"{f'see {kept}; ' if kept else ''}lower optim.lr (now {config.optim.lr:.2g}), mend the "
        "data, or set data.skip_bad"
    )


@torch.no_grad()
def _bad_rows(policy: nn.Module, micro: Sequence[Batch], config: TrainConfig) -> list[int]:
    """Numbers within the step of the rows whose own loss is not finite, on all ranks."""
    alone, world = parallel.plain(policy), parallel.world()
    bad = []
    for i, batch in enumerate(micro):
        first = _first_row(i, batch)
        for row in range(len(batch["input_ids"])):
            one = {name: column[row : row + 1] for name, column in batch.items()}
            with alone.precision(config.model.dtype):
                if not math.isfinite(float(alone(one, 0, 0).nll_sum)):
                    bad.append(first + row)
    everyone: list[Any] = [bad]
    if world > 1:
        everyone = [None] * world
        dist.all_gather_object(everyone, bad)
    return sorted(itertools.chain.from_iterable(everyone))


def _first_row(i: int, batch: Batch) -> int:
    """Number within the step of the first row of this rank's micro-batch i."""
    return (i * parallel.world() + parallel.rank()) * len(batch["input_ids"])


class _Steps(Iterator[list[Batch]]):
    """The micro-batches of each optimiser step, and the seconds that were waited for them."""

    def __init__(self, batches: Iterable[Batch], config: TrainConfig, step: int) -> None:
        self.batches, self.config, self.step = iter(batches), config, step
        self.wait = 0.0
        self.micro: list[Batch] = []

    def __next__(self) -> list[Batch]:
        clock = time.perf_counter()
        micro = list(itertools.islice(self.batches, self.config.accumulation))
        if len(micro) < self.config.accumulation:
            raise ValueError(
                f"the data ended after step {self.step} of {self.config.max_steps}: "
                "add data or lower max_steps"
            )
        self.step, self.micro = self.step + 1, micro
        self.wait += time.perf_counter() - clock
        return micro
