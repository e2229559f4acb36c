"""Code that every Ray Train worker runs: a `Job` from its corpus to its checkpoints.

Metrics and checkpoints are reported to Ray Train. Two files may appear in the run's directory: a
sample of the rejected records in `rejected.jsonl`, and the packed rows of a step whose loss is not
finite in `bad-STEP-RANK.jsonl`.

transformers is imported inside functions: its import takes seconds.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import fsspec
import psutil
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from otr.config import TrainConfig
from otr.loop.checkpoint import Snapshot, load_checkpoint
from otr.loop.determinism import determinism
from otr.loop.progress import ENDED_EARLY, Progress
from otr.training import _compat
from otr.training.audit import Audit
from otr.training.checkpoint_store import CheckpointStore
from otr.training.corpus import VALIDATION_EXAMPLES, pack_locally
from otr.training.restarts import Restart
from otr.training.retention import RETAINED
from otr.training.start import start_of
from otr.training.store.feed import Batch, micro_batches
from otr.training.store.read import COLUMNS, PackedStore, local_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from otr.loop.loop import BadStep

MEBIBYTE = 2**20
FLUSH_SECONDS = 60
STOP_FILE_SECONDS = 1.0  # between two looks for the stop file
GPU_CAP = 0.95  # of a worker's share of a GPU; its CUDA context is not counted


@dataclass(frozen=True)
class Job:
    """A run, as its workers need it."""

    config: TrainConfig
    directory: str
    """The run's directory, a path or URI."""
    packed: str
    """The corpus's packed store, a path or URI."""
    run: dict[str, Any] | None = None
    """Content of a checkpoint's run.json."""
    stop_file: str | None = None
    """Path or URI; once this file exists, the run saves and ends."""
    resume_from: str | None = None
    """Name of the checkpoint to resume from."""
    notes: tuple[str, ...] = ()
    """Notes for the first report."""
    restart: Restart | None = None
    """The restart that this job is, if any; for the first report."""
    retained: int = RETAINED
    """Number of the newest checkpoints to keep while it trains."""


def stop_requested(stop_file: str | None) -> bool:
    """Return whether the stop file (a path or URI) exists."""
    if stop_file is None:
        return False
    fs, path = fsspec.core.url_to_fs(stop_file)
    return bool(fs.exists(path))


def train_loop(job: Job) -> bool:
    """Train on this worker's share of the rows.

    Returns:
        Whether any worker has been told that its host will be taken away.
    """
    if _rank() == 0:
        _compat.note_placement_group(job.directory)
    job = replace(job, config=_as_started(job.config))
    config = job.config
    torch.set_num_threads(max(1, int(config.workers.cpus)))
    leave_the_rest(config.workers.gpus)
    group = dist.new_group(backend="gloo") if config.workers.count > 1 else None
    checkpoints = CheckpointStore(job.directory, group, job.retained)
    corpus = PackedStore(local_copy(job.packed))
    if _rank() == 0:
        _write_rejected(job.directory, corpus.audit())
    with determinism(config.deterministic), checkpoints.local_copy(job.resume_from) as checkpoint:
        state = load_checkpoint(checkpoint) if checkpoint is not None else {}
        _train(job, checkpoints, corpus, state, checkpoint)
    from otr.loop import parallel

    # Every rank takes part; the driver gets the answer of rank 0.
    return bool(parallel.sum_over_ranks(torch.tensor(float(_compat.host_will_be_preempted()))))


def leave_the_rest(gpus: float) -> None:
    """Keep this process to its share of a GPU's memory, if others have the rest of the GPU."""
    if 0 < gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus * GPU_CAP, ray.train.torch.get_device())


def _as_started(config: TrainConfig) -> TrainConfig:
    """Return the run with the number of workers that it was started with."""
    count = ray.train.get_context().get_world_size()
    return replace(config, workers=replace(config.workers, count=count, min_count=0))


def _train(
    job: Job,
    store: CheckpointStore,
    corpus: PackedStore,
    state: dict[str, Any],
    checkpoint: Path | None,
) -> None:
    from otr.loop.loop import Hooks, train
    from otr.memory.strategy import with_resolved_strategy
    from otr.models.tokenizer import load_tokenizer
    from otr.optim.optimizers import check_installed

    config = with_resolved_strategy(job.config)
    check_installed(config.optim)
    first: dict[str, Any] = {"note": "; ".join([*job.notes, *_notes(config, state)])}
    if job.restart is not None:
        first |= {"restart": job.restart.text, "restarts": job.restart.number}
    if job.resume_from is not None:
        store.report_resumed(job.resume_from, {**resumed_metrics(state, config), **first})
        first = {}
    source = config.model
    if checkpoint is not None:
        source = replace(source, path=str(checkpoint))
    tokenizer = load_tokenizer(source)
    start = None
    if config.objective.needs_start:
        load = partial(_load_original, config, tokenizer)
        start = start_of(job.packed, corpus, config, load, job.directory)
    hooks = Hooks(
        should_stop=_StopRequested(job.stop_file),
        before_snapshot=store.flush,
        on_bad_step=partial(_save_bad_rows, job.directory, tokenizer),
    )
    model = _load_model(config, tokenizer, checkpoint)
    if first:
        first["note"] = "; ".join(filter(None, [first["note"], *_model_notes(model)]))
    try:
        train(
            model,
            micro_batches(corpus, config, step=state.get("step", 0), rank=_rank(), start=start),
            config,
            _Reporter(store, tokenizer, job, corpus.audit().rejected, first),
            resume_from=checkpoint,
            validation=_validation(config),
            hooks=hooks,
            base=_load_base(config, tokenizer),
        )
    finally:  # after an error in training, Ray does not wait for the last checkpoint
        store.flush(FLUSH_SECONDS)


def resumed_metrics(state: Mapping[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the metrics to report again for the checkpoint that a run resumes from.

    Its tokens were counted when it was written, and `tokens` is summed over all reports.

    Args:
        state: the checkpoint's trainer state.
        config: the run.
    """
    ended = {ENDED_EARLY: 1} if Progress.of(state).is_stale(config) else {}
    return {**state["metrics"], "tokens": 0.0, **ended}


class _Reporter:
    """Report function of the training loop, called on every rank; Ray keeps rank 0's metrics.

    Args:
        store: writes the checkpoints.
        tokenizer: saved with each checkpoint.
        job: the run.
        rejected: records that can't be used, per cause.
        first: further values of the first report.
    """

    def __init__(
        self,
        store: CheckpointStore,
        tokenizer: "PreTrainedTokenizerBase",
        job: Job,
        rejected: Mapping[str, int],
        first: dict[str, Any],
    ) -> None:
        self.store, self.tokenizer, self.run, self.first = store, tokenizer, job.run, first
        self.patience = job.config.patience
        self.rejected = {f"rejected/{cause}": count for cause, count in rejected.items()}

    def __call__(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Report to Ray Train."""
        report: dict[str, Any] = {**metrics, **_host_metrics(), **self.rejected}
        if self.store.write_seconds is not None:
            report["save/write_seconds"] = self.store.write_seconds
        if snapshot is not None:
            report["save/stall_seconds"] = snapshot.stall_seconds
            if _rank() == 0:
                snapshot.trainer_state |= {"metrics": {**report}, "time": time()}
        report, self.first = report | self.first, {}
        if ENDED_EARLY in metrics:
            note = f"ends early: no lower val_nll in {self.patience} evaluations"
            report["note"] = "; ".join(filter(None, [report.get("note", ""), note]))
        self.store.report(report, snapshot, self.tokenizer, self.run)


def _load_model(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase", checkpoint: Path | None
) -> "PreTrainedModel":
    """Return the model to train: of the checkpoint if there is one, else the checked base model.

    Under FSDP only rank 0 reads weights, and sends them to the other ranks' empty models later.
    """
    from otr.models.architecture import check_sequence_length
    from otr.models.lora import add_adapters, load_adapters

    source = config.model
    if checkpoint is None:
        check_sequence_length(config)
    elif not config.lora.rank:
        source = replace(source, path=str(checkpoint))
    elif _has_weights(config):
        return load_adapters(checkpoint, source)  # type: ignore[return-value]  # peft's own type
    model: Any = _load_original(replace(config, model=source), tokenizer)
    if _has_weights(config):
        if not config.memory.strategy.startswith("fsdp"):
            model.to(ray.train.torch.get_device())
        if checkpoint is None:
            _check_model(config, model)
    if config.lora.rank:
        model = add_adapters(model, config.lora, seed=config.seed)
    return model


def _load_base(
    config: TrainConfig, tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedModel | None":
    """Return the second model that the run compares with; None if it needs none.

    It is the model that the run started from, also when the run resumes.
    """
    if not config.needs_base:
        return None
    from otr.models.load import as_base

    return as_base(_load_original(config, tokenizer), config.model.dtype)


def _load_original(config: TrainConfig, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
    """Return the configured model without adapters; an empty one on ranks that get its weights."""
    from otr.models.load import empty_model, load_model

    if not _has_weights(config):
        return empty_model(config.model)
    return load_model(config.model, tokenizer, quantize=config.lora.quantize)


def _has_weights(config: TrainConfig) -> bool:
    return not config.memory.strategy.startswith("fsdp") or _rank() == 0


def _check_model(config: TrainConfig, model: "PreTrainedModel") -> None:
    """Check that the head is computed as the model does and packed examples are isolated.

    Raises:
        ValueError: the model can't be trained on packed rows.
    """
    from otr.models.checks import check_head, check_packing

    half = config.model.attention.startswith("flash")  # it has no float32
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        check_head(model)
        check_packing(model)


def _notes(config: TrainConfig, state: dict[str, Any]) -> list[str]:
    """Return what the terminal should say about how the run starts."""
    workers = config.workers.count
    notes = [f"{config.memory.strategy} on {workers} worker{'s' if workers > 1 else ''}"]
    if state:
        notes.append(f"resumes from step {state['step']}")
        if state["world"] != workers:
            notes.append(f"had {state['world']} workers, has {workers}: the same rows in each step")
    return notes


def _model_notes(model: "PreTrainedModel") -> list[str]:
    """Return what the terminal should say about how the model is trained."""
    from otr.loop.export import RELOAD_SHARE, can_reload, reload_bytes
    from otr.models.structure import towers, without_adapters
    from otr.models.unpacked import is_unpacked

    whole, model, notes = model, without_adapters(model), []
    if names := [*towers(model)]:
        notes.append(f"text does not reach {', '.join(names)}: frozen")
    if is_unpacked(model):
        notes.append(
            f"{model.config.model_type} mixes packed examples up: each is computed on its own"
        )
    if not can_reload(whole):
        notes.append(
            f"the last checkpoint is compared tensor by tensor, and not loaded again: that takes "
            f"{reload_bytes(whole) / 2**30:.0f} GiB, more than {RELOAD_SHARE:.0%} of this machine's"
        )
    return notes


def _validation(config: TrainConfig) -> list[Batch]:
    """Return this rank's micro-batches of the validation set.

    Raises:
        ValueError: no record of the set can be used.
    """
    if not config.data.validation:
        return []
    columns = pack_locally(config.data.of_validation, config.model, limit=VALIDATION_EXAMPLES)
    if not len(columns["input_ids"]):
        raise ValueError(
            f"no record of --validation {' '.join(config.data.validation)} can be used: compare "
            "its columns with --columns, its lengths with --train.data.sequence-length"
        )
    mine = {n: torch.from_numpy(columns[n][_rank() :: config.workers.count]) for n in COLUMNS}
    parts = zip(*(column.split(config.micro_batch_size) for column in mine.values()), strict=True)
    return [dict(zip(COLUMNS, part, strict=True)) for part in parts if len(part[0])]


class _StopRequested:
    """Function that returns whether this rank has been asked to save and end.

    There are two ways to ask: the stop file, which rank 0 looks for no more often than every
    STOP_FILE_SECONDS, and Ray's notice to every rank that a worker's host will be taken away.
    """

    def __init__(self, stop_file: str | None) -> None:
        self.stop_file = stop_file if _rank() == 0 else None
        self.looked, self.found = 0.0, False

    def __call__(self) -> bool:
        """Return whether to stop."""
        if not self.found and monotonic() - self.looked >= STOP_FILE_SECONDS:
            with suppress(OSError):  # the storage is unavailable: look again later
                self.found = stop_requested(self.stop_file)
            self.looked = monotonic()
        return self.found or _compat.host_will_be_preempted()


def _save_bad_rows(directory: str, tokenizer: "PreTrainedTokenizerBase", bad: "BadStep") -> str:
    """Write this rank's packed rows of a bad step; return the file's path."""
    path = f"{directory}/bad-{bad.step:06d}-{_rank()}.jsonl"
    with fsspec.open(path, "w") as file:
        for number, ids, segments in bad.numbered_rows():
            real = ids[segments > 0].tolist()
            row = {"row": number, "bad": number in bad.rows, "input_ids": real}
            file.write(json.dumps({**row, "text": tokenizer.decode(real)}) + "\n")
    return path


def _write_rejected(directory: str, audit: Audit) -> None:
    """Write the sample of the rejected records."""
    if audit.samples:
        with suppress(OSError), fsspec.open(f"{directory}/rejected.jsonl", "w") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in audit.samples)


def _host_metrics() -> dict[str, float]:
    """Return the host's load, under the names of MLflow's system metrics."""
    metrics = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": psutil.virtual_memory().used / MEBIBYTE,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / MEBIBYTE
    return metrics


def _rank() -> int:
    return ray.train.get_context().get_world_rank()
