"""What of a run fits on its devices, before anything starts.

In: a `TrainConfig` and the bytes of a device. Out: a `Plan`, bytes by kind on each device, and the
nearest configuration that fits. Only the model's config is read.

The whole model's step is counted on fake tensors (`otr.memory.fake_step`) at two small numbers of
layers and carried on to the model's own, as it grows evenly with them. What sharing a model among
workers changes follows from the sizes of its parts.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig

from otr.config import TrainConfig
from otr.memory.fake_step import Footprint, footprint
from otr.memory.strategy import Strategy, resolve_strategy
from otr.models.load import empty_model
from otr.models.parts import decoder_layers

HEADROOM = 0.1  # of a device: its context, fragments, what the libraries take
_LAYERS = (2, 4)  # that are counted
_AT_HAND = 2  # layers that FSDP2 has whole: the one at work, and the next
_SHORTEST = 128


@dataclass(frozen=True)
class Plan:
    """What each device of a run holds at the moment that takes most."""

    strategy: Strategy
    device: Footprint
    host_bytes: int
    """Of each worker, besides the device: under fsdp_offload."""
    device_bytes: int
    step_tokens: int
    """At most, over all workers."""

    @property
    def fits(self) -> bool:
        """With some room to spare."""
        return self.device.total <= (1 - HEADROOM) * self.device_bytes


def plan(config: TrainConfig, device_bytes: int) -> Plan:
    """Count the memory of a run as it is configured.

    Args:
        config: the run.
        device_bytes: of a worker's GPU, or its share of the machine's memory.

    Raises:
        ValueError: the model can't be had, or not be split as configured.
        NotImplementedError: its step can't be counted, as what it does depends on contents.
    """
    strategy = resolve_strategy(config, device_bytes)
    counted = _counted(config, split=strategy.startswith("fsdp"))
    shares = [_share(part, counted, config, strategy) for part in counted.parts]
    device, host = max(shares, key=lambda share: share[0].total)
    tokens = config.global_batch_size * config.data.sequence_length
    return Plan(strategy, device, host, device_bytes, tokens)


def suggest(config: TrainConfig, device_bytes: int) -> tuple[TrainConfig, Plan] | None:
    """The first that fits: as configured, or with the changes that cost least.

    In this order: gradient checkpointing, fewer rows at a time (the step stays the same), a share
    of the model on each worker, its share in host memory, shorter rows. None: nothing fits.

    Raises:
        ValueError, NotImplementedError: as `plan`.
    """
    for row in _candidates(config):
        # The last takes least of its row: none fits if it does not.
        if not plan(row[-1], device_bytes).fits:
            continue
        for changed in row:
            found = plan(changed, device_bytes)
            if found.fits:
                return changed, found
    return None


def _candidates(config: TrainConfig) -> Iterator[list[TrainConfig]]:
    """In rows, of which each candidate takes less memory than the one before."""
    yield [config]
    fewer = [
        n for n in range(config.micro_batch_size - 1, 0, -1) if config.micro_batch_size % n == 0
    ]
    last = config
    for strategy in _strategies(config):
        memory = replace(config.memory, strategy=strategy)
        again = replace(config, memory=replace(memory, gradient_checkpointing=True))
        yield [replace(config, memory=memory), again]
        # More passes a step keep gradients from one to the next: not always less than `again`.
        if row := [replace(again, micro_batch_size=rows) for rows in fewer]:
            yield row
        last = row[-1] if row else again
    length = last.data.sequence_length // 2
    while length >= _SHORTEST:
        yield [replace(last, data=replace(last.data, sequence_length=length))]
        length //= 2


def _strategies(config: TrainConfig) -> list[Strategy]:
    workers = config.workers
    found: list[Strategy] = ["single"] if workers.count == 1 else ["ddp", "fsdp"]
    return [*found, "fsdp_offload"] if workers.gpus else found


def _share(
    whole: Footprint, counted: "_Counted", config: TrainConfig, strategy: Strategy
) -> tuple[Footprint, int]:
    """Of one worker: what its device holds, and what the host holds for it besides."""
    if strategy == "single":
        return whole, 0
    if strategy == "ddp":  # the gradients lie in buckets, which stay from step to step
        buckets = counted.trained_bytes if config.workers.count > 1 else 0
        return replace(whole, gradients=max(whole.gradients, buckets)), 0
    size = 2 if config.model.dtype == "bfloat16" else 4
    workers, layer = config.workers.count, counted.layer_weights
    at_hand = size * (counted.root_weights + _AT_HAND * layer)
    # A layer's gradient, and its float32 form on the way to the other workers.
    passing = (size + 4) * layer * counted.trained_bytes // counted.parameter_bytes
    kept, state = counted.parameter_bytes // workers, 2 * counted.trained_bytes // workers
    if strategy == "fsdp_offload":
        device = replace(whole, parameters=at_hand, gradients=passing, optimizer=0)
        return device, kept + state + counted.trained_bytes // workers
    shared = whole.gradients // workers
    device = replace(whole, parameters=kept + at_hand, gradients=shared + passing, optimizer=state)
    return device, 0


@dataclass(frozen=True)
class _Counted:
    """A model's step by one worker alone, and the sizes of its parts in float32."""

    parts: list[Footprint]
    """The largest of the step's two parts."""
    parameter_bytes: int
    trained_bytes: int
    layer_weights: int
    root_weights: int
    """Weights outside of the layers, which stay whole during a step."""


def _counted(config: TrainConfig, *, split: bool) -> _Counted:
    """The same for all runs whose steps are the same."""
    few = config.micro_batch_size * min(2, config.accumulation)
    alike = replace(
        config,
        global_batch_size=few,
        workers=replace(config.workers, count=1),
        memory=replace(config.memory, strategy="single"),
    )
    return _counted_once(_Key(alike), split)


class _Key:
    """A config, equal to another where all of its fields are; a config itself has no hash."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.text = config, repr(config)

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text


@lru_cache(maxsize=64)
def _counted_once(key: _Key, split: bool) -> _Counted:
    config = key.config
    model: nn.Module = empty_model(config.model)
    architecture = cast(PretrainedConfig, model.config)
    if config.lora.rank:
        from otr.models.lora import add_adapters

        model = add_adapters(empty_model(config.model), config.lora)
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters())
    layers = decoder_layers(model)
    inside = sum(p.numel() for p in layers.parameters())
    return _Counted(
        parts=_of_all_layers(architecture, config, split),
        parameter_bytes=4 * weights,
        trained_bytes=trained,
        layer_weights=inside // len(layers),
        root_weights=weights - inside,
    )


def _of_all_layers(
    architecture: PretrainedConfig, config: TrainConfig, split: bool
) -> list[Footprint]:
    count = architecture.get_text_config().num_hidden_layers
    try:
        if count <= max(_LAYERS):
            return footprint(architecture, config, split=split)
        few, more = (footprint(_with_layers(architecture, n), config, split=split) for n in _LAYERS)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise NotImplementedError(
            f"the step of a {architecture.model_type} model can't be counted: {reason}"
        ) from error
    return [_carried_on(a, b, count) for a, b in zip(few, more, strict=True)]


def _carried_on(few: Footprint, more: Footprint, layers: int) -> Footprint:
    """On the line through two numbers of layers."""
    start, end = _LAYERS
    times = (layers - start) / (end - start)
    return Footprint(
        **{
            kind: max(0, round(size + times * (vars(more)[kind] - size)))
            for kind, size in vars(few).items()
        }
    )


def _with_layers(architecture: PretrainedConfig, layers: int) -> PretrainedConfig:
    shorter: Any = deepcopy(architecture)
    text = shorter.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return shorter
