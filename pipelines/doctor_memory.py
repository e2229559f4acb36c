"""Whether a model can be trained as configured, and whether that fits: told before it is tried.

In: a resolved configuration. Out: a line that tells what was found, or a ValueError with the
remedy; on the terminal a table of what each device holds, as configured and as suggested. Of the
model only its config is read.
"""

from dataclasses import fields

from otr.config import ModelConfig, TrainConfig
from otr.fake_step import Footprint
from otr.planner import Plan, plan, suggest
from pipelines import console
from pipelines.doctor_machine import device_bytes
from pipelines.presets import SweepConfig

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


def training(config: SweepConfig) -> str:
    """The model has the attention, the positions, the adapters and the layers that are asked for.

    Raises:
        ValueError: it has not.
    """
    from otr.lora import add_adapters
    from otr.model import empty_model, positions
    from otr.parallel import decoder_layers

    train = config.train
    _attention(train.model)
    most, length = positions(train.model), train.data.row_length
    if most is not None and length > most:
        raise ValueError(
            f"data.row_length is {length}, but {train.model.path!r} has {most} positions: give "
            f"--train.data.row-length {most} or less"
        )
    told = [f"rows of {length} of {most or 'any number of'} positions"]
    if train.model.attention != "auto":
        empty_model(train.model)  # which transformers refuses if it can't have it
        told.append(train.model.attention)
    if train.lora.rank:
        adapters = add_adapters(empty_model(train.model), train.lora)
        trained = sum(p.numel() for p in adapters.parameters() if p.requires_grad)
        told.append(f"{trained} weights in adapters")
    if train.memory.strategy.startswith("fsdp"):
        told.append(f"split into {len(decoder_layers(empty_model(train.model)))} layers")
    return ", ".join(told)


def _attention(model: ModelConfig) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = model.attention
    known = {"auto", "eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    known = {one for one in known if "|" not in one and not one.startswith("otr_")}
    if name not in known and "/" not in name:  # with one it is a kernel on the hub
        raise ValueError(f"model.attention is {name!r}: use one of {', '.join(sorted(known))}")


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
            "rows a pass": config.micro_rows,
            "row length": config.data.row_length,
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
    if other.micro_rows != config.micro_rows:
        flags.append(f"--train.micro-rows {other.micro_rows}")
    if other.data.row_length != config.data.row_length:
        flags.append(f"--train.data.row-length {other.data.row_length}")
    return flags
