"""What every Ray Train worker runs.

In: a `Job`. Out: reports to Ray Train, with a checkpoint where one was saved, a sample of the
rejected rows in `<directory>/rejected.jsonl`, and the rows of a step whose loss is not finite in
`<directory>/bad-STEP-RANK.jsonl`.

Shapes: N rows, S row length.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import fsspec
import psutil
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution.context import get_train_context

from otr.config import TrainConfig
from otr.loop.checkpoint import Snapshot, load_checkpoint
from otr.training.audit import Audit
from otr.training.checkpoint_store import Storage
from otr.training.corpus import BATCH, packed_locally
from otr.training.reader import COLUMNS, Batch, Reader, corpus_stream, micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from otr.loop.loop import BadStep

VALIDATION_EXAMPLES = 2000
MEBIBYTE = 2**20
FLUSH_SECONDS = 60
LOOK_SECONDS = 1.0  # between two looks at the stop file


@dataclass(frozen=True)
class Job:
    """What a worker is to do."""

    config: TrainConfig
    directory: str
    """Of the run, a path or URI."""
    run: dict[str, Any] | None = None
    """What a checkpoint's run.json says."""
    stop_file: str | None = None
    """Where it exists, the run saves and ends."""
    resume_from: str | None = None
    """Name of the checkpoint to go on from."""
    notes: tuple[str, ...] = ()
    """To be told with the first report."""


def train_loop(job: Job) -> None:
    """Train on this worker's share."""
    config = job.config
    torch.set_num_threads(max(1, int(config.workers.cpus)))
    group = dist.new_group(backend="gloo") if config.workers.count > 1 else None
    storage = Storage(job.directory, group)
    with storage.directory_of(job.resume_from) as resume_from:
        state = load_checkpoint(resume_from) if resume_from is not None else {}
        audit = Audit(config.data.max_rejected, config.data.skip_bad)
        with _rejected_to(job.directory, audit):
            reader = None
            if _rank() == 0:  # it reads while transformers is imported and the model loaded
                reader = Reader(corpus_stream(config), config.seed, audit, state.get("reader"))
            _train(job, storage, reader, state, resume_from)


def _train(
    job: Job,
    storage: Storage,
    reader: Reader | None,
    state: dict[str, Any],
    resume_from: Path | None,
) -> None:
    from otr.loop.loop import Hooks, train
    from otr.memory.strategy import with_resolved_strategy

    config = with_resolved_strategy(job.config)
    note = "; ".join([*job.notes, *_notes(config, state)])
    if job.resume_from is not None:
        storage.remind(job.resume_from, {**state["metrics"], "note": note})
        note = ""
    model, tokenizer = _model(config, resume_from)
    hooks = Hooks(
        should_stop=_Told(job.stop_file),
        before_snapshot=storage.flush,
        on_bad_step=partial(_keep_rows, job.directory, tokenizer),
    )
    try:
        train(
            model,
            micro_batches(reader, config),
            config,
            _Reports(storage, tokenizer, job.run, reader, note),
            resume_from=resume_from,
            validation=_validation(config),
            hooks=hooks,
        )
    finally:  # Ray does not wait where training raised an error
        storage.flush(FLUSH_SECONDS)


class _Reports:
    """Called by the loop on every rank; only what rank 0 says is kept."""

    def __init__(
        self,
        storage: Storage,
        tokenizer: "PreTrainedTokenizerBase",
        run: dict[str, Any] | None,
        reader: Reader | None,
        note: str,
    ) -> None:
        self.storage, self.tokenizer, self.run, self.reader = storage, tokenizer, run, reader
        self.note = note

    def __call__(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        """Report to Ray Train.

        Raises:
            ValueError: too many rows are rejected.
        """
        told: dict[str, Any] = {**metrics, **_host_metrics()}
        if self.reader is not None:
            audit = self.reader.audit
            if audit.rows >= BATCH or audit.complete:
                audit.check()
            told |= {f"rejected/{cause}": count for cause, count in dict(audit.rejected).items()}
        if self.storage.write_seconds is not None:
            told["save/write_seconds"] = self.storage.write_seconds
        if snapshot is not None:
            told["save/stall_seconds"] = snapshot.stall_seconds
            if self.reader is not None:
                snapshot.progress |= {"reader": asdict(self.reader.place), "metrics": {**told}}
        if self.note:
            told["note"], self.note = self.note, ""
        self.storage.report(told, snapshot, self.tokenizer, self.run)


def _model(
    config: TrainConfig, resume_from: Path | None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model to train, proven; under fsdp only rank 0 reads its weights."""
    from otr.models.architecture import check_sequence_length
    from otr.models.checks import check_head, check_packing
    from otr.models.load import empty_model, load_model
    from otr.models.lora import add_adapters, load_adapters
    from otr.models.tokenizer import load_tokenizer

    source = config.model
    if resume_from is not None:
        source = replace(source, path=str(resume_from))
    tokenizer = load_tokenizer(source)
    if resume_from is None:
        check_sequence_length(config)
    empty = config.memory.strategy.startswith("fsdp") and _rank() != 0
    if config.lora.rank:
        if resume_from is not None and not empty:
            return load_adapters(resume_from, config.model), tokenizer  # type: ignore[return-value]
        source = config.model
    model = empty_model(source) if empty else load_model(source, tokenizer)
    if not empty and not config.memory.strategy.startswith("fsdp"):
        torch.nn.Module.to(model, ray.train.torch.get_device())
    if resume_from is None and not empty:
        half = config.model.attention.startswith("flash")  # which has no float32
        with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            check_head(model)
            check_packing(model)
    if config.lora.rank:
        model = add_adapters(model, config.lora, seed=config.seed)  # type: ignore[assignment]
    return model, tokenizer


def _notes(config: TrainConfig, state: dict[str, Any]) -> list[str]:
    """What a person should know of how the run begins."""
    workers = config.workers.count
    notes = [f"{config.memory.strategy} on {workers} worker{'s' if workers > 1 else ''}"]
    if state:
        notes.append(f"resumes from step {state['step']}")
        if state["world"] != workers:
            notes.append(f"had {state['world']} workers, has {workers}: the same rows in each step")
    return notes


def _validation(config: TrainConfig) -> list[Batch]:
    """This rank's micro-batches of the validation set."""
    if not config.data.validation:
        return []
    columns = packed_locally(
        config.data, config.model, config.data.validation, limit=VALIDATION_EXAMPLES
    )
    if not len(columns["input_ids"]):
        raise ValueError(
            f"no row of data.validation {config.data.validation} can be used: compare its columns "
            "with data.columns, its lengths with data.sequence_length"
        )
    mine = {n: torch.from_numpy(columns[n][_rank() :: config.workers.count]) for n in COLUMNS}
    parts = zip(*(column.split(config.micro_batch_size) for column in mine.values()), strict=True)
    return [dict(zip(COLUMNS, part, strict=True)) for part in parts if len(part[0])]


class _Told:
    """Whether this rank is told to save and end.

    By the stop file, which rank 0 looks for no more than once in LOOK_SECONDS, or by Ray, whose
    watcher tells every rank when the host of one is to be taken away.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path if _rank() == 0 else None
        self.looked, self.there = 0.0, False

    def __call__(self) -> bool:
        if self.path and not self.there and monotonic() - self.looked >= LOOK_SECONDS:
            fs, inner = fsspec.core.url_to_fs(self.path)
            with suppress(OSError):  # a store that is away: the next look will tell
                self.there = fs.exists(inner)
            self.looked = monotonic()
        # Not ray.train.get_preemption_info, a barrier of all ranks: the loop asks them already.
        taken = get_train_context().preemption_context.preemption_info
        return self.there or taken is not None


def _keep_rows(directory: str, tokenizer: "PreTrainedTokenizerBase", bad: "BadStep") -> str:
    """Write this rank's rows of a bad step; returns the file."""
    path = f"{directory}/bad-{bad.step:06d}-{_rank()}.jsonl"
    with fsspec.open(path, "w") as file:
        for number, ids, segments in bad.numbered():
            real = ids[segments > 0].tolist()
            row = {"row": number, "bad": number in bad.rows, "input_ids": real}
            file.write(json.dumps({**row, "text": tokenizer.decode(real)}) + "\n")
    return path


@contextmanager
def _rejected_to(directory: str, audit: Audit) -> Iterator[None]:
    """Write the sample of the rejected rows, however the run ends."""
    try:
        yield
    finally:
        if audit.samples:
            # Of this start; another has the samples of what it read.
            with suppress(OSError), fsspec.open(f"{directory}/rejected.jsonl", "w") as file:
                file.writelines(json.dumps(sample) + "\n" for sample in audit.samples)


def _host_metrics() -> dict[str, float]:
    """Under the names that MLflow's own system metrics have."""
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
