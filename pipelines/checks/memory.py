"""Check that a training step fits into the memory of each device, before it is tried.

Only the model's config is read.
"""

import os
from dataclasses import fields

import ray

from evals.hardware import GIB
from otr.config import TrainConfig, Workers
from otr.memory.fake_step import Footprint
from otr.memory.planner import Plan, plan, suggest
from otr.memory.strategy import device_bytes as local_device_bytes
from pipelines.checks.ray_cluster import ANSWER_SECONDS, connected
from pipelines.config.presets import SweepConfig
from pipelines.runtime import console

_PARTS = [field.name for field in fields(Footprint)]


def check_memory(config: SweepConfig) -> str:
    """Check that a training step fits on each device.

    Raises:
        ValueError: it does not fit; the message names options that would.
    """
    size = device_bytes(config.train.workers)
    try:
        found = plan(config.train, size)
    except NotImplementedError as error:
        return f"unknown: {error}"
    text = (
        f"{found.device.total / GIB:.2f} of {size / GIB:.1f} GiB on each device, strategy "
        f"{found.strategy}, {found.step_tokens} tokens per step"
    )
    if not found.fits:
        raise ValueError(f"too little memory: {text}; {_remedy(config.train, size)}")
    return text


def print_memory(config: TrainConfig) -> None:
    """Print what each device holds, as configured and as suggested, and the options to change."""
    size = device_bytes(config.workers)
    try:
        found = plan(config, size)
        suggestion = None if found.fits else suggest(config, size)
    except NotImplementedError:
        return
    columns = {"as configured": _column(config, found)}
    if suggestion:
        columns["suggested"] = _column(*suggestion)
    labels = columns["as configured"]
    console.say("")
    console.table(
        ("GiB on each device", *columns),
        [(label, *(column[label] for column in columns.values())) for label in labels],
    )
    console.say("fits: nothing to change" if found.fits else _remedy(config, size))


def device_bytes(workers: Workers) -> int:
    """Return the memory of a worker: its GPU's, or its share of this machine's.

    With RAY_ADDRESS set, the GPU is one of the cluster's.

    Raises:
        ValueError: the cluster does not answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    if not (workers.gpus and address):
        return local_device_bytes(workers)
    with connected(address):
        task = ray.remote(num_cpus=0, num_gpus=min(1, workers.gpus))(local_device_bytes)
        try:
            return int(ray.get(task.remote(workers), timeout=ANSWER_SECONDS))
        except ray.exceptions.RayError as error:
            raise ValueError(f"no GPU of {address} answers: {error}") from error


def _column(config: TrainConfig, found: Plan) -> dict[str, str]:
    """Return the cells of one column of the table, by label."""
    sizes = {name: getattr(found.device, name) for name in _PARTS} | {
        "total": found.device.total,
        "available": found.device_bytes,
        "host memory per worker": found.host_bytes,
        "host memory of rank 0 at a save": found.save_bytes,
    }
    return {label: f"{size / GIB:.2f}" for label, size in sizes.items()} | {
        "strategy": found.strategy,
        "micro batches per step": str(config.accumulation),
        "micro batch size": str(config.micro_batch_size),
        "sequence length": str(config.data.sequence_length),
        "tokens per step": str(found.step_tokens),
    }


def _remedy(config: TrainConfig, size: int) -> str:
    found = suggest(config, size)
    if found is None:
        return (
            "nothing fits: use a smaller model, --train.lora.rank 16 (with --train.lora.quantize "
            "nf4 it needs least), or more devices"
        )
    return f"give {' '.join(_options_for(config, *found, size))}"


def _options_for(config: TrainConfig, other: TrainConfig, found: Plan, size: int) -> list[str]:
    """Return the command-line options that change `config` into `other`."""
    options = []
    if found.strategy != plan(config, size).strategy or config.memory.strategy != "auto":
        options.append(f"--train.memory.strategy {found.strategy}")
    if other.memory.gradient_checkpointing and not config.memory.gradient_checkpointing:
        options.append("--train.memory.gradient-checkpointing")
    if other.micro_batch_size != config.micro_batch_size:
        options.append(f"--train.micro-batch-size {other.micro_batch_size}")
    if other.data.sequence_length != config.data.sequence_length:
        options.append(f"--train.data.sequence-length {other.data.sequence_length}")
    return options
