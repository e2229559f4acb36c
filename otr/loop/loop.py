"""The training loop: optimizer steps over packed batches, with metrics and snapshots reported.

The loop knows neither where batches come from nor who watches: `train(model, batches, config,
report)`. In a test, `batches` is a list and `report` appends to one; under Ray, `otr.training`
provides both. A packed batch has the columns `input_ids`, `loss_mask` and `segment_ids`, [B, S]
each (see `otr.data`).

Shapes: B packed rows of a micro-batch, S sequence length (tokens per packed row).
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from otr.config import TrainConfig
from otr.loop import parallel
from otr.loop.batch import Batch, PackedBatch
from otr.loop.checkpoint import Probe, Snapshot, Staging, load_checkpoint
from otr.loop.determinism import determinism
from otr.loop.evaluate import evaluate
from otr.loop.policy import Policy
from otr.loop.progress import ENDED_EARLY, Progress
from otr.loss.buckets import BUCKETS, shares
from otr.models.freeze import freeze
from otr.models.stops import count_ends
from otr.optim import learning_rate, make_optimizer

PROBE_ROWS = 4  # packed rows of the check of a saved model, which reloads it on the CPU
ENDS_STEPS = 20  # steps in which it is counted how trained stretches end

Report = Callable[[dict[str, float], Snapshot | None], Any]


@dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite; it has not changed the weights."""

    step: int
    """Number of the step, from 1."""
    loss: float
    grad_norm: float
    rows: list[int]
    """Packed rows whose own loss is not finite, on all ranks; numbered from 0 within the step."""
    batches: Sequence[Batch]
    """This rank's micro-batches of the step."""

    def numbered_rows(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield this rank's packed rows: number, input_ids [S], segment_ids [S]."""
        for i, batch in enumerate(self.batches):
            numbers = itertools.count(_first_row(i, batch))
            yield from zip(numbers, batch["input_ids"], batch["segment_ids"], strict=False)


@dataclass(frozen=True)
class Hooks:
    """Functions that the loop calls on every rank."""

    should_stop: Callable[[], bool] = lambda: False
    """Called once per step; if it returns True on any rank, all ranks save and end the run."""
    before_snapshot: Callable[[], None] = lambda: None
    """Called before a snapshot overwrites the previous one; returns when that has been written."""
    on_bad_step: Callable[[BadStep], str] = lambda bad: ""
    """Stores the packed rows of a bad step; returns the file's path for the error message."""


@dataclass(frozen=True)
class _Run:
    """The parts of a run that every step uses."""

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    hooks: Hooks


@dataclass(frozen=True)
class _StepResult:
    metrics: dict[str, float]
    """Means over the step's target tokens on all ranks; empty if the step was skipped."""
    tokens: float
    """Tokens of the step on all ranks, padding excluded."""
    stop: bool
    saves: bool
    """Whether rank 0's clock asks for a checkpoint."""
    skipped: bool = False


def train(  # noqa: PLR0913 - four positional arguments, the rest are optional keywords
    model: PreTrainedModel,
    batches: Iterable[Batch],
    config: TrainConfig,
    report: Report,
    *,
    resume_from: Path | None = None,
    validation: Sequence[Batch] = (),
    hooks: Hooks | None = None,
    base: PreTrainedModel | None = None,
) -> None:
    """Take optimizer steps up to `config.max_steps`, or until `config.patience` is used up.

    Every rank calls this. All ranks compute the same val_nll, so that they end together.

    The loss of a step is the sum over its target tokens, divided by their number over all ranks and
    micro-batches.

    Args:
        model: trained in place (except under fsdp), on this process's GPU if it has one.
        batches: this rank's micro-batches, `config.accumulation` per step, starting with the first
            step that is still to be taken.
        config: the run.
        report: called with metrics of all ranks, and with a snapshot if one is to be written.
        resume_from: a checkpoint directory whose weights `model` already has.
        validation: this rank's micro-batches to evaluate on; used if `config.data.validation` is
            not empty.
        hooks: functions called besides.
        base: the frozen model that `config.kl_weight` compares with, see `Policy`.

    Raises:
        FloatingPointError: a loss or gradient is not finite and `config.data.skip_bad` is off; the
            weights are unchanged.
        ValueError: the batches end before `max_steps` or lack what the objective needs, a step has
            no target token, there is no base to compare with, or `config.freeze` does not fit the
            model.
    """
    with determinism(config.deterministic):
        _train(model, batches, config, report, resume_from, validation, hooks or Hooks(), base)


def _train(  # noqa: PLR0913 - the arguments of `train`
    model: PreTrainedModel,
    batches: Iterable[Batch],
    config: TrainConfig,
    report: Report,
    resume_from: Path | None,
    validation: Sequence[Batch],
    hooks: Hooks,
    base: PreTrainedModel | None,
) -> None:
    freeze(model, config.freeze)
    policy = parallel.wrap(Policy(model, config.objective, config.kl_weight, base), config)
    run = _Run(policy, make_optimizer(policy, config.optim), config, hooks)
    progress = _restore(run, resume_from)
    steps, staging = _StepBatches(batches, config, progress.step), Staging()
    policy.train()
    clock, tokens, stop = time.perf_counter(), 0.0, False
    saved, seconds_between = time.monotonic(), 60 * config.checkpoint_minutes or math.inf
    while progress.step < config.max_steps and not progress.is_stale(config) and not stop:
        lr = learning_rate(config.optim, progress.step, config.max_steps)
        saves = time.monotonic() - saved >= seconds_between
        result = _step(run, next(steps), progress.step, lr, saves=saves)
        skipped = progress.skipped + result.skipped
        progress = replace(progress, step=progress.step + 1, skipped=skipped)
        step, stop, metrics = progress.step, result.stop, dict(result.metrics)
        tokens += result.tokens
        seconds = time.perf_counter() - clock
        # Decided by the config: a rank without validation rows takes part in the evaluation.
        evaluates = config.data.validation and (
            step == config.max_steps or step % config.eval_interval == 0
        )
        if evaluates:
            evaluation = evaluate(parallel.unwrap(policy), validation, config.model.dtype)
            progress = progress.evaluated(evaluation["val_nll"])
            metrics |= evaluation
        ends_early = progress.is_stale(config) and step < config.max_steps
        metrics |= {ENDED_EARLY: 1} if ends_early else {}
        last = step == config.max_steps or ends_early
        interval = config.checkpoint_interval
        saves = last or stop or result.saves or (interval > 0 and step % interval == 0)
        if evaluates or saves or step == 1 or step % config.log_interval == 0:
            metrics |= {
                "tokens": tokens,  # since the last report
                "tokens_per_second": tokens / seconds,
                "data_wait": steps.wait / seconds,
            }
            metrics |= {"skipped_steps": progress.skipped} if progress.skipped else {}
            snapshot = None
            if saves:
                rounded = last and config.save_dtype != "float32"
                optimizer = None if rounded else run.optimizer
                snapshot = take_snapshot(policy, optimizer, staging, progress, run.hooks)
                snapshot.precision, saved = config.model.dtype, time.monotonic()
                snapshot.ends = steps.ends
            if snapshot is not None and last:
                snapshot.probe = _probe(policy, steps.micro[0], config)
                snapshot.dtype = config.save_dtype
            report({"step": step, "lr": lr, **metrics}, snapshot)
            clock, tokens, steps.wait = time.perf_counter(), 0.0, 0.0


def _restore(run: _Run, checkpoint: Path | None) -> Progress:
    """Load the optimizer's state from a checkpoint; return the progress it was written at."""
    if checkpoint is None:
        return Progress()
    state = load_checkpoint(checkpoint)
    if "dtype" not in state:  # a run that has ended, with rounded weights, takes no step
        parallel.load_optimizer(run.policy, run.optimizer, checkpoint)
    return Progress.of(state)


def take_snapshot(
    policy: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    staging: Staging,
    progress: Progress,
    hooks: Hooks,
) -> Snapshot:
    """Copy the run's state to host memory. Every rank calls this.

    Without an optimizer, for weights that will be rounded, its state is left out.
    """
    start = time.perf_counter()
    hooks.before_snapshot()
    snapshot = Snapshot(
        step=progress.step,
        model=parallel.unwrap(policy).model,
        weights=parallel.stage_weights(policy, staging),
        optimizer={} if optimizer is None else parallel.optimizer_shard(policy, optimizer, staging),
        trainer_state={
            "skipped_steps": progress.skipped,
            "lowest_val_nll": progress.lowest_val_nll,
            "stale_evaluations": progress.stale_evaluations,
        },
    )
    staging.wait()
    snapshot.stall_seconds = time.perf_counter() - start
    return snapshot


def _probe(policy: nn.Module, batch: Batch, config: TrainConfig) -> Probe:
    """Measure a few rows' NLL under the trained model, to compare with the saved model's."""
    own, dtype = parallel.unwrap(policy), parallel.precisest_dtype(policy, config)
    rows = {name: column[:PROBE_ROWS] for name, column in batch.items()}
    own.eval()
    packed = PackedBatch.of(rows)
    with torch.no_grad(), own.precision(dtype):
        nll_T = own.predict(packed.to(own.device)).nll_T.cpu()
    own.train()
    return Probe(packed, nll_T, dtype, parallel.part_hashes(policy))


def _step(run: _Run, micro: Sequence[Batch], step: int, lr: float, *, saves: bool) -> _StepResult:
    """Take the optimizer step after `step` others; `saves` counts on rank 0 alone."""
    config, policy, own = run.config, run.policy, parallel.unwrap(run.policy)
    device = own.device
    packed = [PackedBatch.of(batch, _first_row(i, batch)) for i, batch in enumerate(micro)]
    counts = [sum(len(batch.index_T) for batch in packed), sum(b.num_tokens for b in packed)]
    flags = [run.hooks.should_stop(), saves and parallel.rank() == 0]
    # In host memory: a GPU need not be waited for.
    count, tokens, *summed = parallel.sum_over_ranks(
        torch.tensor([*map(float, counts), *map(float, flags)], dtype=torch.float64)
    ).tolist()
    stop, saves = (flag > 0 for flag in summed)
    if count == 0:
        raise ValueError(f"step {step + 1} has no token to predict: its packed rows are empty")
    seed = config.seed * 1_000_003 + step  # torch's CPU generators keep 32 bits of it
    rank, world_size = parallel.rank(), parallel.world_size()
    torch.manual_seed(seed * world_size + rank)  # dropout repeats when a run resumes
    totals = torch.zeros(6 + 2 * len(BUCKETS), dtype=torch.float64, device=device)
    for i, batch in enumerate(packed):
        last = i == len(packed) - 1
        with parallel.accumulating(policy, last=last), own.precision(config.model.dtype):
            # DDP and FSDP average gradients over ranks; the step wants their sum.
            out = policy(batch.to(device), seed, world_size / count)
            out.loss_sum.backward()
        kl_sum = torch.zeros_like(out.nll_sum) if out.kl_sum is None else out.kl_sum
        sums = [out.loss_sum, out.nll_sum, out.reward_sum, out.hit_sum, out.entropy_sum, kl_sum]
        totals += torch.cat([torch.stack(sums).detach(), out.token_sums, out.gradient_sums])
    norm = parallel.clip_gradients(policy, config.optim.max_grad_norm)
    # The one place where a step waits for the GPU.
    numbers = torch.cat([parallel.sum_over_ranks(totals), norm.to(totals)[None]]).tolist()
    loss, grad_norm = numbers[0] / world_size, numbers[-1]
    nll, reward, hits, entropy, kl = (total / count for total in numbers[1:6])
    by_bucket = numbers[6:-1]
    if not all(map(math.isfinite, (loss, nll, grad_norm))):
        run.optimizer.zero_grad(set_to_none=True)
        rows = _bad_rows(policy, micro, config)
        _handle_bad_step(BadStep(step + 1, loss, grad_norm, rows, micro), run)
        return _StepResult({}, tokens, stop, saves, skipped=True)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    metrics = {
        "loss": loss,
        "nll": nll,
        "reward": reward,
        "hit_rate": hits,
        "entropy": entropy,
        "grad_norm": grad_norm,
        **shares(by_bucket[: len(BUCKETS)], by_bucket[len(BUCKETS) :]),
    }
    metrics |= {"kl_to_base": kl} if config.kl_weight else {}
    return _StepResult(metrics, tokens, stop, saves)


def _handle_bad_step(bad: BadStep, run: _Run) -> None:
    """Store a bad step's packed rows; raise unless such steps are skipped."""
    path = run.hooks.on_bad_step(bad)
    if run.config.data.skip_bad:
        return
    numbers = ", ".join(map(str, bad.rows))
    cause = f"its rows {numbers} (from 0)" if bad.rows else "no single row"
    raise FloatingPointError(
        f"step {bad.step}: loss {bad.loss}, gradient norm {bad.grad_norm}, caused by {cause}; "
        f"{f'see {path}; ' if path else ''}lower optim.lr (now {run.config.optim.lr:.2g}), fix the "
        "data, or set data.skip_bad"
    )


@torch.no_grad()
def _bad_rows(policy: nn.Module, micro: Sequence[Batch], config: TrainConfig) -> list[int]:
    """Find the packed rows of a step whose own loss is not finite, on all ranks."""
    own, world_size = parallel.unwrap(policy), parallel.world_size()
    bad = []
    for i, batch in enumerate(micro):
        first = _first_row(i, batch)
        for row in range(len(batch["input_ids"])):
            single = {name: column[row : row + 1] for name, column in batch.items()}
            with own.precision(config.model.dtype):
                out = own(PackedBatch.of(single).to(own.device), 0)
                if not math.isfinite(float(out.nll_sum)):
                    bad.append(first + row)
    by_rank: list[Any] = [bad]
    if world_size > 1:
        by_rank = [None] * world_size
        dist.all_gather_object(by_rank, bad)
    return sorted(itertools.chain.from_iterable(by_rank))


def _first_row(i: int, batch: Batch) -> int:
    """Return the number within the step of the first row of this rank's micro-batch i."""
    return (i * parallel.world_size() + parallel.rank()) * len(batch["input_ids"])


class _StepBatches(Iterator[list[Batch]]):
    """The micro-batches of each optimizer step; measures the seconds spent waiting for them."""

    def __init__(self, batches: Iterable[Batch], config: TrainConfig, step: int) -> None:
        self.batches, self.config, self.step = iter(batches), config, step
        self.wait = 0.0
        self.micro: list[Batch] = []
        self.counted = 0
        self.ends: Counter[int] = Counter()
        """Last tokens of the trained stretches of the first steps, on this rank."""

    def __next__(self) -> list[Batch]:
        start = time.perf_counter()
        micro = list(itertools.islice(self.batches, self.config.accumulation))
        if len(micro) < self.config.accumulation:
            raise ValueError(
                f"the data ended after step {self.step} of {self.config.max_steps}: "
                "add data or lower max_steps"
            )
        if self.counted < ENDS_STEPS:
            self.counted += 1
            self.ends.update(count_ends(micro[0]))
        self.step, self.micro = self.step + 1, micro
        self.wait += time.perf_counter() - start
        return micro
