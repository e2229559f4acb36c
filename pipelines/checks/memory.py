"""Whether a training step fits into the memory of each device: told before it is tried.

In: a resolved configuration. Out: a line that tells what was found, or a ValueError with the
remedy; on the terminal a table of what each device holds, as configured and as suggested. Of the
model only its config is read.
"""

from dataclasses import fields

from otr.config import TrainConfig
from otr.memory.fake_step import Footprint
from otr.memory.planner import Plan, plan, suggest
from pipelines.checks.machine import device_bytes
from pipelines.config.presets import SweepConfig
from pipelines.runtime import console

GIB = 2**30
_PARTS = [field.name for field in fields(Footprint)]
_LABELS = (
    *_PARTS,
    "all",
    "of",
    "host, a worker",
    "strategy",
    "passes a step",
    "rows a pass",
    "row length",
    "tokens a step",
)


def memory(config: SweepConfig) -> str:
    """A training step fits on each device.

    Raises:
        ValueError: it does not; says what would.
    """
    size = device_bytes(config.train.workers)
    try:
        found = plan(config.train, size)
    except NotImplementedError as error:
        return f"unknown: {error}"
    need = f"{found.device.total / GIB:.2f} of {size / GIB:.1f} GiB on each device"
    text = f"{need} with {found.strategy}, {found.step_tokens} tokens a step"
    if not found.fits:
        raise ValueError(f"too little memory: {text}; {_remedy(config.train, size)}")
    return text


def tell(config: TrainConfig) -> None:
    """Print the table of parts, and what to pass for a run that fits."""
    size = device_bytes(config.workers)
    try:
        found = plan(config, size)
        other = None if found.fits else suggest(config, size)
    except NotImplementedError:
        return
    plans = [("as configured", config, found), *([("suggested", *other)] if other else [])]
    console.say("")
    console.table(
        ("GiB on each device", *(name for name, _, _ in plans)),
        [(label, *(_told(label, run, its) for _, run, its in plans)) for label in _LABELS],
    )
    console.say("it fits: nothing to change" if found.fits else _remedy(config, size))


def _told(label: str, config: TrainConfig, its: Plan) -> str:
    sizes = {name: getattr(its.device, name) for name in _PARTS}
    sizes |= {"all": its.device.total, "of": its.device_bytes, "host, a worker": its.host_bytes}
    if label in sizes:
        return f"{sizes[label] / GIB:.2f}"
    return str(
        {
            "strategy": its.strategy,
            "passes a step": config.accumulation,
            "rows a pass": config.micro_batch_size,
            "row length": config.data.sequence_length,
            "tokens a step": its.step_tokens,
        }[label]
    )


def _remedy(config: TrainConfig, size: int) -> str:
    found = suggest(config, size)
    if found is None:
        return "nothing fits: take a smaller model, --train.lora.rank 16, or more devices"
    return f"give {' '.join(_flags(config, *found, size))}"


def _flags(config: TrainConfig, other: TrainConfig, its: Plan, size: int) -> list[str]:
    """What to pass to get `other`."""
    flags = []
    if its.strategy != plan(config, size).strategy or config.memory.strategy != "auto":
        flags.append(f"--train.memory.strategy {its.strategy}")
    if other.memory.gradient_checkpointing and not config.memory.gradient_checkpointing:
        flags.append("--train.memory.gradient-checkpointing")
    if other.micro_batch_size != config.micro_batch_size:
        flags.append(f"--train.micro-batch-size {other.micro_batch_size}")
    if other.data.sequence_length != config.data.sequence_length:
        flags.append(f"--train.data.sequence-length {other.data.sequence_length}")
    return flags
