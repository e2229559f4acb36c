"""How the ranks of a run share a model: whole on each (ddp), or a part on each (fsdp).

In: a `Policy` and a `TrainConfig`. Out: a module whose forward and backward pass are those of all
ranks together, with gradients averaged over them. FSDP2 fetches a decoder layer when it is needed;
what lies outside of the layers (embeddings, head, last norm) forms the root and stays fetched
during a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_with_path

from otr.config import TrainConfig
from otr.loop.checkpoint import OPTIMIZER, TRAINER, Staging, saved_weights
from otr.loop.policy import Policy
from otr.models.parts import decoder_layers


def rank() -> int:
    """Of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Ranks of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def wrap(policy: Policy, config: TrainConfig) -> nn.Module:
    """The policy on this process's device, shared among the ranks as `config.memory.strategy` says.

    Under fsdp the weights are those of rank 0, and the model of any other rank may be empty.

    Raises:
        ValueError: fsdp of a model that has no list of layers.
    """
    strategy = config.memory.strategy
    if config.memory.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        if hasattr(policy.model, "peft_config"):
            policy.model.enable_input_require_grads()
    if config.memory.compile:
        for layer in decoder_layers(policy.model):
            layer.compile()
    if strategy.startswith("fsdp"):
        return _sharded(policy, config)
    policy.to(policy.device)
    if world() == 1:
        return policy
    return DistributedDataParallel(policy, gradient_as_bucket_view=True)


def _sharded(policy: Policy, config: TrainConfig) -> nn.Module:
    layers, device = decoder_layers(policy.model), policy.device
    source = policy.state_dict() if rank() == 0 else {}
    buffers = dict(policy.named_buffers())
    half = config.model.dtype == "bfloat16"
    offload = config.memory.strategy == "fsdp_offload"
    shared: dict[str, Any] = {
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
        if offload
        else OffloadPolicy(),
        "mesh": dist.device_mesh.init_device_mesh(device.type, (world(),)),
    }
    source = {name: tensor.detach() for name, tensor in source.items()}
    policy.to("meta")
    policy.model.tie_weights()  # what moves to another device is tied no more
    for layer in layers:
        fully_shard(layer, **shared)
    fully_shard(policy, **shared)
    register_fsdp_forward_method(policy, "score")
    policy.to_empty(device="cpu" if offload else device)
    policy.model.tie_weights()
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=offload)
    set_model_state_dict(policy, source, options=options)
    for name, buffer in policy.named_buffers():  # those that are in no state dict too
        if rank() == 0:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, 0)
        if offload:
            owner, _, last = name.rpartition(".")
            setattr(policy.get_submodule(owner), last, buffer.to(device))
    return policy


@contextmanager
def accumulates(policy: nn.Module, *, last: bool) -> Iterator[None]:
    """A forward and backward pass of several; under ddp the last one averages their gradients."""
    # Under fsdp each pass hands on its gradients: whole ones are what no rank has room for.
    if isinstance(policy, DistributedDataParallel) and not last:
        with policy.no_sync():
            yield
    else:
        yield


def plain(policy: nn.Module) -> Policy:
    """The policy inside what `wrap` made; it may be called by all ranks together."""
    inside = policy.module if isinstance(policy, DistributedDataParallel) else policy
    assert isinstance(inside, Policy)
    return inside


def clip(policy: nn.Module, most: float) -> float:
    """Scale the gradients to a norm of at most `most`; returns what it was."""
    norm = nn.utils.clip_grad_norm_(policy.parameters(), most)
    return float(getattr(norm, "full_tensor", lambda: norm)())


def whole_weights(policy: nn.Module, staging: Staging) -> dict[str, Tensor] | None:
    """What is saved of the model, copied to the CPU of rank 0. Every rank calls this."""
    model = plain(policy).model
    if isinstance(policy, FSDPModule):
        options = StateDictOptions(
            full_state_dict=True,
            cpu_offload=True,
            ignore_frozen_params=hasattr(model, "peft_config"),
        )
        whole: dict[str, Any] = get_model_state_dict(policy, options=options)
        weights = {name.removeprefix("model."): tensor for name, tensor in whole.items()}
    else:
        weights = model.state_dict() if rank() == 0 else {}
    if rank() != 0:
        return None
    saved = saved_weights(model, weights)
    return {name: staging.copy(name, tensor) for name, tensor in saved.items()}


def optimizer_part(
    policy: nn.Module, optimizer: torch.optim.Optimizer, staging: Staging
) -> dict[str, Any]:
    """This rank's part of the optimiser's state, copied to the CPU; under ddp rank 0 has it all."""
    if isinstance(policy, DistributedDataParallel) and rank() != 0:
        return {}
    if isinstance(policy, FSDPModule):
        policy.reshard()  # a forward pass without gradients leaves the root whole
    state = get_optimizer_state_dict(policy, optimizer)

    def copied(path: Any, value: Any) -> Any:
        return staging.copy(f"optimizer{path}", value) if isinstance(value, Tensor) else value

    return tree_map_with_path(copied, state)


def load_optimizer(policy: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Any) -> None:
    """Take the optimiser's state from a checkpoint, however many ranks wrote it."""
    state = get_optimizer_state_dict(policy, optimizer)
    dcp.load(
        state,
        checkpoint_id=checkpoint / TRAINER / OPTIMIZER,
        no_dist=not dist.is_initialized(),
    )
    set_optimizer_state_dict(policy, optimizer, state)
