"""How the workers of a run share its model, chosen from the model's size and a device's memory."""

from dataclasses import replace
from typing import Literal

import psutil
import torch
import torch.distributed as dist

from otr.config import TrainConfig, Workers
from otr.models.freeze import freeze
from otr.models.load import empty_model
from otr.optim.optimizers import state_bytes

Strategy = Literal["single", "ddp", "fsdp", "fsdp_offload"]


def resolve_strategy(config: TrainConfig, device_bytes: int) -> Strategy:
    """Return `config.memory.strategy`, or for ``auto`` the first strategy that should fit.

    Weights and gradients take 8 bytes per trained weight, AdamW's two moments as many (other
    optimizers' state less), DDP's buckets 4 more; a quarter of the device is left for activations
    and the loss. A base model in 4 bits, and some optimizers' state, are never sharded.

    Raises:
        ValueError: the model's config cannot be loaded.
    """
    if config.memory.strategy != "auto":
        return config.memory.strategy
    workers = config.workers.count
    unsharded: Strategy = "single" if workers == 1 else "ddp"
    sharded = config.optim.can_shard and config.lora.quantize == "none"
    if (workers == 1 and not config.workers.gpus) or not sharded:
        return unsharded
    model = empty_model(config.model)
    weights = sum(p.numel() for p in model.parameters())
    if config.lora.rank:
        model.requires_grad_(False)  # adapters take little
    freeze(model, config.freeze)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = 4 * trained + state_bytes(model, config.optim)
    available = 0.75 * device_bytes
    if 4 * weights + kept + (0 if workers == 1 else 4 * trained) <= available:
        return unsharded
    if workers > 1 and (4 * weights + kept) / workers <= available:
        return "fsdp"
    return "fsdp_offload" if config.workers.gpus else "fsdp"


def with_resolved_strategy(config: TrainConfig) -> TrainConfig:
    """Return the config with the strategy that ``auto`` means on these ranks' devices.

    Every rank calls this; all ranks get the same strategy.
    """
    memory = config.memory
    if memory.strategy == "auto":
        smallest = torch.tensor(device_bytes(config.workers))
        if dist.is_initialized():
            dist.all_reduce(smallest, dist.ReduceOp.MIN)
        memory = replace(memory, strategy=resolve_strategy(config, int(smallest)))
    return replace(config, memory=memory)


def device_bytes(workers: Workers) -> int:
    """Return the memory of one worker on this machine: its GPU's, or its share of the host's."""
    if workers.gpus:
        return int(torch.cuda.mem_get_info()[1] * min(1, workers.gpus))
    return psutil.virtual_memory().total // workers.count
