"""Which runs fit on their devices, estimated before anything starts.

`plan` estimates the bytes that each device of a run holds, by kind; `suggest` finds the nearest
configuration that fits. Both read only the model's config. The step of a whole model is counted on
fake tensors (`otr.memory.fake_step`) at two small numbers of layers and extrapolated, since it
grows linearly with the layers. The effect of sharding follows from the sizes of the model's parts.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from torch import nn
from transformers import PretrainedConfig

from otr.config import TrainConfig
from otr.loop.export import FILE_BYTES
from otr.memory.fake_step import Footprint, footprint
from otr.memory.strategy import Strategy, resolve_strategy
from otr.models.freeze import freeze, freeze_equally
from otr.models.load import as_base, empty_model
from otr.models.structure import decoder_layers
from otr.optim.optimizers import state_bytes

HEADROOM = 0.1  # share of a device for its context, fragmentation and libraries
_LAYERS = (2, 4)  # numbers of layers that are counted
_FETCHED = 2  # layers that FSDP2 holds unsharded: the current one and the next
_SHORTEST = 128  # smallest sequence length that is suggested


@dataclass(frozen=True)
class Plan:
    """Memory of a run at the moment of a step that uses most."""

    strategy: Strategy
    device: Footprint
    host_bytes: int
    """Host memory per worker besides the device; not 0 under fsdp_offload only."""
    save_bytes: int
    """Host memory of a worker that writes a checkpoint: copies of what it saves, and under fsdp the
    tensors of the file that it writes. The check of the last checkpoint takes more, if it can be
    had (`otr.loop.export.can_reload`)."""
    device_bytes: int
    """Size of the device."""
    step_tokens: int
    """Largest number of tokens per optimizer step, over all workers."""

    @property
    def fits(self) -> bool:
        """Whether the run fits, with HEADROOM to spare."""
        return self.device.total <= (1 - HEADROOM) * self.device_bytes


def plan(config: TrainConfig, device_bytes: int) -> Plan:
    """Estimate the memory of a run as it is configured.

    Args:
        config: the run.
        device_bytes: memory of a worker's GPU, or its share of the machine's memory.

    Raises:
        ValueError: the model's config cannot be loaded, or the model cannot be sharded as
            configured.
        NotImplementedError: the model's step depends on contents, so it cannot be counted.
    """
    strategy = resolve_strategy(config, device_bytes)
    counted = _counted(config, split=strategy.startswith("fsdp"))
    shares = [_share(part, counted, config, strategy) for part in counted.parts]
    device, host = max(shares, key=lambda share: share[0].total)
    tokens = config.global_batch_size * config.data.sequence_length
    save = _save_bytes(counted, config, strategy)
    return Plan(strategy, device, host, save, device_bytes, tokens)


def suggest(config: TrainConfig, device_bytes: int) -> tuple[TrainConfig, Plan] | None:
    """Find a configuration that fits: the given one, or the one with the cheapest changes.

    Changes are tried in this order: gradient checkpointing; fewer packed rows per forward pass (the
    step stays the same); sharding the model over the workers; shards in host memory; a shorter
    sequence length.

    Returns:
        The configuration and its plan; None if nothing fits.

    Raises:
        ValueError, NotImplementedError: see `plan`.
    """
    for group in _candidates(config):
        # The last of a group needs least: if it does not fit, none does.
        if not plan(group[-1], device_bytes).fits:
            continue
        for changed in group:
            found = plan(changed, device_bytes)
            if found.fits:
                return changed, found
    return None


def _candidates(config: TrainConfig) -> Iterator[list[TrainConfig]]:
    """Yield groups of configurations; within a group each needs less memory than the one before."""
    yield [config]
    fewer = [
        n for n in range(config.micro_batch_size - 1, 0, -1) if config.micro_batch_size % n == 0
    ]
    last = config
    for strategy in _strategies(config):
        memory = replace(config.memory, strategy=strategy)
        checkpointed = replace(config, memory=replace(memory, gradient_checkpointing=True))
        yield [replace(config, memory=memory), checkpointed]
        # A group of its own: accumulated gradients may need more than fewer rows save.
        if group := [replace(checkpointed, micro_batch_size=rows) for rows in fewer]:
            yield group
        last = group[-1] if group else checkpointed
    length = last.data.sequence_length // 2
    while length >= _SHORTEST:
        yield [replace(last, data=replace(last.data, sequence_length=length))]
        length //= 2


def _strategies(config: TrainConfig) -> list[Strategy]:
    workers = config.workers
    found: list[Strategy] = ["single" if workers.count == 1 else "ddp"]
    if config.optim.can_shard and config.lora.quantize == "none":  # else never sharded
        found += ["fsdp"] if workers.count > 1 else []
        found += ["fsdp_offload"] if workers.gpus else []
    return found


def _share(
    whole: Footprint, counted: "_Counted", config: TrainConfig, strategy: Strategy
) -> tuple[Footprint, int]:
    """Return what one worker's device holds, and what the host holds for it besides."""
    if strategy == "single":
        return whole, 0
    if strategy == "ddp":  # gradients lie in buckets, which persist between steps
        buckets = counted.trained_bytes if config.workers.count > 1 else 0
        return replace(whole, gradients=max(whole.gradients, buckets)), 0
    size = 2 if config.model.dtype == "bfloat16" else 4
    workers, layer = config.workers.count, counted.layer_weights
    fetched = size * (counted.root_weights + _FETCHED * layer)
    # A layer's gradient, and its float32 copy that is reduced over the workers.
    reduced = (size + 4) * layer * counted.trained_bytes // counted.parameter_bytes
    fetched += size * counted.base_root_weights
    shard = (counted.parameter_bytes + counted.base_bytes) // workers
    state = counted.state_bytes // workers
    if strategy == "fsdp_offload":
        device = replace(whole, parameters=fetched, gradients=reduced, optimizer=0)
        return device, shard + state + counted.trained_bytes // workers
    gradients = whole.gradients // workers
    device = replace(
        whole, parameters=shard + fetched, gradients=gradients + reduced, optimizer=state
    )
    return device, 0


def _save_bytes(counted: "_Counted", config: TrainConfig, strategy: Strategy) -> int:
    """Return the host memory of rank 0 for a checkpoint."""
    saved = counted.trained_bytes if config.lora.rank else counted.parameter_bytes
    if not strategy.startswith("fsdp"):
        return saved + counted.state_bytes
    workers = config.workers.count
    if config.lora.rank:  # rank 0 gets all adapters
        return saved + counted.state_bytes // workers
    file = min(saved // workers, FILE_BYTES) + counted.largest_bytes
    return (saved + counted.state_bytes) // workers + file


@dataclass(frozen=True)
class _Counted:
    """A model's step on a single worker, and the sizes of its parts in float32."""

    parts: list[Footprint]
    """Peaks of the step's two halves."""
    parameter_bytes: int
    trained_bytes: int
    state_bytes: int
    """Of the optimizer."""
    largest_bytes: int
    """Of a single tensor."""
    layer_weights: int
    root_weights: int
    """Number of weights outside of the layers, which stay fetched during a step."""
    base_bytes: int
    """Of a second model to compare with; 0 if there is none."""
    base_root_weights: int
    """As `root_weights`, of the second model."""


def _counted(config: TrainConfig, *, split: bool) -> _Counted:
    """Count a run's step; runs that differ in nothing that matters share one count."""
    few = config.micro_batch_size * min(2, config.accumulation)
    normalized = replace(
        config,
        global_batch_size=few,
        workers=replace(config.workers, count=1),
        memory=replace(config.memory, strategy="single"),
    )
    return _counted_once(_Key(normalized), split)


class _Key:
    """A config as a cache key: configs hold dicts and have no hash."""

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
    freeze(model, config.freeze)
    weights = sum(p.numel() for p in model.parameters())
    layers = decoder_layers(model)
    inside = sum(p.numel() for p in layers.parameters())
    base_bytes = base_root = 0
    if config.needs_base:
        base = as_base(empty_model(config.model), config.model.dtype)
        base_bytes, base_root = sum(p.nbytes for p in base.parameters()), weights - inside
    return _Counted(
        parts=_count_all_layers(architecture, config, split, model),
        parameter_bytes=4 * weights,
        trained_bytes=_trained_bytes(model),
        state_bytes=state_bytes(model, config.optim),
        largest_bytes=4 * max(p.numel() for p in model.parameters()),
        layer_weights=inside // len(layers),
        root_weights=weights - inside,
        base_bytes=base_bytes,
        base_root_weights=base_root,
    )


def _trained_bytes(model: nn.Module) -> int:
    return 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def _count_all_layers(
    architecture: PretrainedConfig, config: TrainConfig, split: bool, model: nn.Module
) -> list[Footprint]:
    """Count the step of the whole model, by extrapolation if it has many layers.

    All layers are counted as if each trained what any of them trains. Gradients and state are then
    reduced to what `model` trains; the activations stay an upper bound.
    """
    if not config.freeze:
        return _count_equal_layers(architecture, config, split, None)
    equal = empty_model(config.model)
    freeze_equally(equal, model)
    gradients = _trained_bytes(model) / _trained_bytes(equal)
    state = state_bytes(model, config.optim) / state_bytes(equal, config.optim)
    return [
        replace(
            part,
            gradients=round(gradients * part.gradients),
            optimizer=round(state * part.optimizer),
        )
        for part in _count_equal_layers(architecture, config, split, model)
    ]


def _count_equal_layers(
    architecture: PretrainedConfig, config: TrainConfig, split: bool, frozen_in: nn.Module | None
) -> list[Footprint]:
    count = architecture.get_text_config().num_hidden_layers
    options: dict[str, Any] = {"split": split, "frozen_in": frozen_in}
    try:
        if count <= max(_LAYERS):
            return footprint(architecture, config, **options)
        few, more = (footprint(_with_layers(architecture, n), config, **options) for n in _LAYERS)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise NotImplementedError(
            f"the step of a {architecture.model_type} model cannot be counted: {reason}"
        ) from error
    return [_extrapolated(a, b, count) for a, b in zip(few, more, strict=True)]


def _extrapolated(few: Footprint, more: Footprint, layers: int) -> Footprint:
    """Continue the line through two numbers of layers."""
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
