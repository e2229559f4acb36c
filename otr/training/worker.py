"""What every Ray Train worker runs.

In: {"config": TrainConfig, "run": dict | None, "directory": of the run} and a share of the packed
corpus. Out: reports to Ray Train, with a checkpoint where one was saved, and a sample of the
rejected rows in `<directory>/rejected.jsonl` (of ranks other than 0 in rejected-RANK.jsonl).

Shapes: N rows, S row length.
"""

import dataclasses
import functools
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data import DataIterator

from otr.checkpoint import Checkpoints, checkpoint_name
from otr.config import TrainConfig
from otr.training.corpus import BATCH, Audit, packed, packed_locally

COLUMNS = ("input_ids", "loss_mask", "segment_ids")
WINDOW = 1024  # packed rows that are shuffled together
VALIDATION_EXAMPLES = 2000
MEBIBYTE = 2**20

Arrays = dict[str, np.ndarray]
Batch = dict[str, torch.Tensor]


def train_loop(job: Mapping[str, Any]) -> None:
    """Train on this worker's share, from the run's last checkpoint if there is one."""
    from otr.loop import train
    from otr.model import load_model, load_tokenizer

    config: TrainConfig = job["config"]
    torch.set_num_threads(max(1, int(config.workers.cpus)))
    torch.manual_seed(config.seed)
    audit = Audit(config.data.max_rejected)
    with _last_checkpoint() as resume_from, tempfile.TemporaryDirectory() as scratch:
        source = config.model
        if resume_from is not None:
            source = dataclasses.replace(source, path=str(resume_from))
        tokenizer = load_tokenizer(source)
        model = load_model(source, tokenizer)
        torch.nn.Module.to(model, ray.train.torch.get_device())
        try:
            train(
                model,
                micro_batches(_share(config), config, audit),
                config,
                functools.partial(_report, audit),
                checkpoints=Checkpoints(Path(scratch), tokenizer, job["run"], resume_from),
                validation=_validation(config),
            )
        finally:
            _write_rejected(audit, job["directory"])


def micro_batches(share: DataIterator, config: TrainConfig, audit: Audit) -> Iterator[Batch]:
    """`config.micro_rows` packed rows at a time, epoch after epoch.

    What a window leaves over goes into the next batch, so that the smallest corpus fills one.

    Raises:
        ValueError: no row of this share can be used.
    """
    size = config.micro_rows
    left: Arrays | None = None
    for window in _windows(share, config.seed, audit):
        if left is not None:
            window = {name: np.concatenate([left[name], window[name]]) for name in COLUMNS}
        whole = len(window["input_ids"]) // size * size
        for start in range(0, whole, size):
            yield _tensors(window, slice(start, start + size))
        left = {name: column[whole:] for name, column in window.items()}


def _windows(share: DataIterator, seed: int, audit: Audit) -> Iterator[Arrays]:
    """Stretches of the packed corpus, for ever, in an order that differs from epoch to epoch."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch])
        used = 0
        for window in share.iter_batches(batch_size=WINDOW):
            if epoch == 0:
                audit.add(window["audit"])
            rows = order.permutation(np.flatnonzero(window["segment_ids"][:, 0]))
            used += len(rows)
            yield {name: window[name][rows] for name in COLUMNS}
        audit.complete = True
        if not used:
            audit.check()  # says why
            raise ValueError("no row for this worker: add data or take fewer workers")


def _share(config: TrainConfig) -> DataIterator:
    """Of the packed corpus; a single worker reads it itself, which saves two processes."""
    if config.workers.count > 1:
        return ray.train.get_dataset_shard("train")
    return packed(config.data, config.model).iterator()


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
            "with data.columns, its lengths with data.row_length"
        )
    context = ray.train.get_context()
    mine = {n: c[context.get_world_rank() :: context.get_world_size()] for n, c in columns.items()}
    starts = range(0, len(mine["input_ids"]), config.micro_rows)
    return [_tensors(mine, slice(start, start + config.micro_rows)) for start in starts]


def _tensors(columns: Arrays, rows: slice) -> Batch:
    return {name: torch.from_numpy(column[rows]) for name, column in columns.items()}


@contextmanager
def _last_checkpoint() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as directory:
            yield Path(directory)


def _report(audit: Audit, metrics: dict[str, float], directory: str | None) -> None:
    """To Ray Train, which moves the checkpoint to the run's storage.

    Raises:
        ValueError: too many rows are rejected; on every rank, as all report at the same step.
    """
    whole = of_all_ranks(audit, ray.train.torch.get_device())
    if whole.rows >= BATCH or whole.complete:
        whole.check()
    rejected = {f"rejected/{cause}": count for cause, count in whole.rejected.items()}
    ray.train.report(
        {**metrics, **rejected, **_host_metrics()},
        checkpoint=ray.train.Checkpoint.from_directory(directory) if directory else None,
        checkpoint_dir_name=checkpoint_name(int(metrics["step"])),
        delete_local_checkpoint_after_upload=True,
    )


def of_all_ranks(audit: Audit, device: torch.device) -> Audit:
    """What all ranks have read and rejected so far; the samples are this rank's."""
    from otr.data import Rejected

    causes = Rejected.CAUSES
    counts = [audit.rows, not audit.complete, *(audit.rejected[cause] for cause in causes)]
    sums = torch.tensor(counts, dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.all_reduce(sums)
    whole = Audit(audit.max_rejected)
    whole.rows, reading, *rejected = sums.tolist()
    whole.complete = reading == 0
    whole.rejected = +Counter(dict(zip(causes, rejected, strict=True)))
    whole.samples = audit.samples
    return whole


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


def _write_rejected(audit: Audit, directory: str) -> None:
    rank = ray.train.get_context().get_world_rank()
    if audit.samples:
        name = f"rejected-{rank}.jsonl" if rank else "rejected.jsonl"
        with fsspec.open(f"{directory}/{name}", "w") as file:
            file.writelines(json.dumps(sample) + "\n" for sample in audit.samples)
