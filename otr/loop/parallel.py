"""How the ranks of a run share a model: all of it on each rank (ddp) or a shard (fsdp).

`wrap` turns a `Policy` into a module whose forward and backward passes are those of all ranks
together; gradients are averaged over the ranks. FSDP2 fetches each decoder layer when it is needed.
What lies outside of the layers (embeddings, head, last norm) forms the root, which stays fetched
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
from transformers import PreTrainedModel

from otr._compat import attention_name, tree_map_with_path
from otr.config import TrainConfig
from otr.loop.checkpoint import OPTIMIZER, TRAINER, Staging, saved_weights
from otr.loop.export import content_hash
from otr.loop.policy import Policy
from otr.models.structure import decoder_layers, without_adapters
from otr.models.unpacked import is_unpacked, set_unpacked


def rank() -> int:
    """Return the rank of this process; 0 if not distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place and return it."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def wrap(policy: Policy, config: TrainConfig) -> nn.Module:
    """Move the policy to this process's device and share it as `config.memory.strategy` requires.

    Under fsdp all ranks get the weights of rank 0; the models of other ranks may be empty.

    Raises:
        ValueError: the strategy is fsdp and the model has no list of layers.
    """
    strategy = config.memory.strategy
    if world_size() > 1:
        for model in filter(None, (policy.model, policy.base)):
            _share_computation(model)
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
    if world_size() == 1:
        return policy
    return DistributedDataParallel(policy, gradient_as_bucket_view=True)


def _share_computation(model: PreTrainedModel) -> None:
    """Compute examples as rank 0 does; a rank without weights can't find out what is right."""
    model = without_adapters(model)
    ways: list[Any] = [(attention_name(model.config), is_unpacked(model))]
    before = ways[0][0]
    dist.broadcast_object_list(ways)
    attention, unpacked = ways[0]
    if attention != before:
        model.set_attn_implementation(attention)
    set_unpacked(model, unpacked)


def _sharded(policy: Policy, config: TrainConfig) -> nn.Module:
    """Shard the policy with FSDP2: forget its weights, shard, then load those of rank 0."""
    models = [policy.model] if policy.base is None else [policy.model, policy.base]
    layers, device = [layer for m in models for layer in decoder_layers(m)], policy.device
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
        "mesh": dist.device_mesh.init_device_mesh(device.type, (world_size(),)),
    }
    source = {name: tensor.detach() for name, tensor in source.items()}
    tied = _tied_names(policy)
    policy.to("meta")
    _tie(policy, tied)  # moving to another device unties weights
    for layer in layers:
        fully_shard(layer, **shared)
    fully_shard(policy, **shared)
    for method in ("predict", "kl_to_base"):
        register_fsdp_forward_method(policy, method)
    policy.to_empty(device="cpu" if offload else device)
    _tie(policy, tied)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=offload)
    set_model_state_dict(policy, source, options=options)
    for name, buffer in policy.named_buffers():  # includes buffers that are in no state dict
        if rank() == 0:
            buffer.copy_(buffers[name])
        dist.broadcast(buffer, 0)
        if offload:
            owner, _, own_name = name.rpartition(".")
            setattr(policy.get_submodule(owner), own_name, buffer.to(device))
    return policy


def _tied_names(module: nn.Module) -> dict[str, str]:
    """Return the name of each parameter that is another one, and the name of that one."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    found = {name: first.setdefault(id(parameter), name) for name, parameter in named}
    return {name: same for name, same in found.items() if name != same}


def _tie(module: nn.Module, tied: dict[str, str]) -> None:
    """Make parameters one again. Models tie their own, but not those of `modules_to_save`."""
    for name, same in tied.items():
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, module.get_parameter(same))


@contextmanager
def accumulating(policy: nn.Module, *, last: bool) -> Iterator[None]:
    """Run one of a step's forward and backward passes; ddp averages gradients in the last one."""
    # fsdp reduces gradients in every pass: no rank has memory for unsharded ones.
    if isinstance(policy, DistributedDataParallel) and not last:
        with policy.no_sync():
            yield
    else:
        yield


def unwrap(policy: nn.Module) -> Policy:
    """Return the policy inside the result of `wrap`; all ranks may call it together."""
    inner = policy.module if isinstance(policy, DistributedDataParallel) else policy
    assert isinstance(inner, Policy)
    return inner


def precisest_dtype(policy: nn.Module, config: TrainConfig) -> str:
    """Return the most precise `ModelConfig.dtype` that the policy can compute in without training.

    The weights are float32, so it is float32, unless FSDP gathers them in bfloat16 or the attention
    has no float32.
    """
    flash = config.model.attention.startswith("flash")
    return config.model.dtype if flash or isinstance(policy, FSDPModule) else "float32"


def clip_gradients(policy: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a norm of at most `max_norm`; return the norm before."""
    norm = nn.utils.clip_grad_norm_(policy.parameters(), max_norm)
    return getattr(norm, "full_tensor", lambda: norm)()


def saved_parts(policy: nn.Module) -> dict[str, Tensor] | None:
    """Return what a checkpoint keeps of the model in training, as `Snapshot.weights` describes it.

    Adapters are small: rank 0 gets all of them, on its CPU. Every rank calls this.
    """
    model = unwrap(policy).model
    sharded = isinstance(policy, FSDPModule)
    if sharded and hasattr(model, "peft_config"):
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        gathered: dict[str, Any] = get_model_state_dict(policy, options=options)
        state = {name.removeprefix("model."): tensor for name, tensor in gathered.items()}
    elif isinstance(policy, FSDPModule):
        policy.reshard()  # a forward pass without gradients leaves the root fetched
        return saved_weights(model, model.state_dict())
    else:
        state = model.state_dict()
    return saved_weights(model, state) if rank() == 0 else None


def stage_weights(policy: nn.Module, staging: Staging) -> dict[str, Tensor] | None:
    """Copy `saved_parts` to the CPU. Every rank calls this."""
    parts = saved_parts(policy)
    return parts and {name: staging.copy(name, tensor) for name, tensor in parts.items()}


def part_hashes(policy: nn.Module) -> dict[str, int]:
    """Return the `content_hash` of each of this rank's `saved_parts`. Every rank calls this."""
    return {name: content_hash(tensor) for name, tensor in (saved_parts(policy) or {}).items()}


def optimizer_shard(
    policy: nn.Module, optimizer: torch.optim.Optimizer, staging: Staging
) -> dict[str, Any]:
    """Copy this rank's part of the optimizer's state to the CPU; under ddp rank 0 has all of it."""
    if isinstance(policy, DistributedDataParallel) and rank() != 0:
        return {}
    if isinstance(policy, FSDPModule):
        policy.reshard()  # a forward pass without gradients leaves the root fetched
    state = get_optimizer_state_dict(policy, optimizer)

    def copied(path: Any, value: Any) -> Any:
        return staging.copy(f"optimizer{path}", value) if isinstance(value, Tensor) else value

    return tree_map_with_path(copied, state)


def load_optimizer(policy: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Any) -> None:
    """Load the optimizer's state from a checkpoint written by any number of ranks."""
    state = get_optimizer_state_dict(policy, optimizer)
    dcp.load(
        state,
        checkpoint_id=checkpoint / TRAINER / OPTIMIZER,
        no_dist=not dist.is_initialized(),
    )
    set_optimizer_state_dict(policy, optimizer, state)
