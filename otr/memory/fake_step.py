"""One training step without weights, data or a device: what it would hold in memory.

In: a model's architecture and a `TrainConfig`. Out: a `Footprint`, bytes by kind at the moment of
the step that holds most. The step is the real one, forward, loss, backward and optimiser, on
torch's fake tensors, which have shapes and no contents; a ledger counts their storages.

Every row is taken to be one full example whose tokens are all trained: no step holds more.

Shapes: B rows, S row length, N = B S tokens.
"""

import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from otr._compat import (
    FakeTensorMode,
    TorchDispatchMode,
    attention_name,
    reads_number,
    storage_key,
    tree_leaves,
)
from otr.config import TrainConfig
from otr.loss import fused
from otr.loss.objective import Objective
from otr.loss.rows import rows_
from otr.models.attention import PACKED, Lengths, no_mask, register
from otr.models.parts import head, without_adapters
from otr.optim import make_optimizer

Kind = Literal["parameters", "gradients", "optimizer", "activations", "loss"]


@dataclass(frozen=True)
class Footprint:
    """Bytes that are in use at the same time."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """What the backward pass needs, and what it makes on its way."""
    loss: int
    """A chunk of logits and the gradients that the loss hands on."""

    @property
    def total(self) -> int:
        """All kinds."""
        return sum(getattr(self, field.name) for field in fields(self))


def footprint(
    architecture: PretrainedConfig, config: TrainConfig, *, split: bool = False
) -> list[Footprint]:
    """What one worker holds that has the whole model.

    Args:
        architecture: of the model, with the attention that it would be given.
        config: the run; its workers and its strategy do not matter here.
        split: weights are of low precision where the products are, as FSDP2 makes them layer by
            layer; else they have low copies besides, as under autocast.

    Returns:
        Of two moments, each of which grows evenly with the number of layers: when the first half
        of the step holds most besides gradients, and when the second half holds most.
    """
    ledger = _Ledger()
    dtype = getattr(torch, config.model.dtype) if split else torch.float32
    with warnings.catch_warnings(action="ignore"):  # of names that transformers has deprecated
        model = _model(architecture, config)
        with FakeTensorMode():
            _to_cpu(model, dtype)
            with ledger:
                _step(model, config, ledger)
    return [Footprint(**peak) for peak in ledger.peaks]


class _Ledger(TorchDispatchMode):
    """Counts the bytes of live storages by kind, and keeps the largest sums.

    Answers for fake tensors what only contents could: a number asked for is 1, a mask all True.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind: Kind = "activations"
        self.live = {field.name: 0 for field in fields(Footprint)}
        self.part = 0
        self.peaks = [dict(self.live), dict(self.live)]
        self._known: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if reads_number(func):
            return 1
        if func is torch.ops.aten.nonzero.default:
            mask = args[0]
            out = mask.new_empty(mask.numel(), mask.dim(), dtype=torch.int64)
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self.look()
        return out

    def add(self, tensor: Tensor) -> None:
        """Count the tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage_key(tensor)
        if key not in self._known:
            self._count(key, self.kind, storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def move(self, tensor: Tensor, kind: Kind) -> None:
        """Count a storage as of another kind from now on."""
        key = storage_key(tensor)
        size = self._forget(key)
        self._count(key, kind, size)

    def look(self) -> None:
        """Keep the sums of now, if they are the largest of this part."""
        if self._size(self.live) > self._size(self.peaks[self.part]):
            self.peaks[self.part] = dict(self.live)

    def _size(self, sums: dict[str, int]) -> int:
        """Gradients come as activations go, evenly: the first part's moment is where none are."""
        return sum(sums.values()) - (sums["gradients"] if self.part == 0 else 0)

    @contextmanager
    def counting(self, kind: Kind) -> Iterator[None]:
        """What is made meanwhile is of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def _count(self, key: int, kind: str, size: int) -> None:
        self._known[key] = kind, size
        self.live[kind] += size

    def _forget(self, key: int) -> int:
        kind, size = self._known.pop(key)
        self.live[kind] -= size
        return size


def _model(architecture: PretrainedConfig, config: TrainConfig) -> nn.Module:
    """On the meta device, as a run has it."""
    register()
    name = attention_name(architecture)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            architecture,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
            # The others keep what PACKED keeps, and not all of them run on a CPU.
            attn_implementation=name if name in ("sdpa", "eager") else PACKED,
        )
    if config.lora.rank:
        from otr.models.lora import add_adapters

        model = add_adapters(model, config.lora)
    if config.memory.gradient_checkpointing:
        # A fake step has no random state to keep.
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if config.lora.rank:
            model.enable_input_require_grads()
    return model


def _to_cpu(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the model tensors of the CPU, fake ones inside a `FakeTensorMode`."""
    made: dict[Tensor, Tensor] = {}  # what is tied stays so
    for module in model.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, old in [*parameters, *buffers]:
            trained = isinstance(old, nn.Parameter)
            if old not in made:
                new = torch.empty(old.shape, dtype=dtype if trained else old.dtype)
                made[old] = nn.Parameter(new, old.requires_grad) if trained else new
            setattr(module, name, made[old])


def _step(model: Any, config: TrainConfig, ledger: _Ledger) -> None:
    model.train()
    with ledger.counting("parameters"):
        for tensor in (*model.parameters(), *model.buffers()):
            ledger.add(tensor)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = _warm_up(model, trained, config, ledger)
    done = 0

    def has_gradient(parameter: Tensor) -> None:
        nonlocal done
        done += 1
        assert parameter.grad is not None
        ledger.move(parameter.grad, "gradients")
        if done == len(trained) // 2:
            ledger.part = 1

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(has_gradient)
    low = config.model.dtype == "bfloat16" and head(model).weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = _loss(model, config, ledger)
        loss.backward()
    optimizer.step()


def _warm_up(
    model: Any, trained: Sequence[Tensor], config: TrainConfig, ledger: _Ledger
) -> torch.optim.Optimizer:
    """The step before, which leaves the optimiser's state and, if they add up, gradients."""
    optimizer = make_optimizer(model, config.optim)
    with ledger.counting("gradients"):
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    with ledger.counting("optimizer"):
        optimizer.step()
    if config.accumulation == 1:
        optimizer.zero_grad(set_to_none=True)
    ledger.peaks[0] = dict(ledger.live)
    return optimizer


def _loss(model: Any, config: TrainConfig, ledger: _Ledger) -> Tensor:
    """Of one micro-batch: `Policy` without what depends on the contents of its rows."""
    hidden_ND = _hidden(model, config.micro_batch_size, config.data.sequence_length)
    its = head(model)
    scored_N = torch.arange(len(hidden_ND))
    dtype = getattr(torch, config.model.dtype)
    with ledger.counting("loss"):
        hidden_TD = hidden_ND[scored_N]
        larger = torch.empty(_larger_chunk(len(scored_N) * len(its.weight), dtype, config))
        loss_sum, _ = fused.LinearLoss.apply(
            hidden_TD if its.logit_scale == 1 else hidden_TD * its.logit_scale,
            its.weight,
            its.bias,
            scored_N,
            scored_N,
            fused.Settings(config.objective, 0, its.softcap, dtype, _Rows(config)),
        )
        del larger
    return cast(Tensor, loss_sum)


def _larger_chunk(logits: int, dtype: torch.dtype, config: TrainConfig) -> int:
    """Floats by which a chunk of a GPU is larger than one of a CPU, where the step is counted."""
    if not config.workers.gpus:
        return 0
    sizes = (min(logits * dtype.itemsize, fused.CHUNK_BYTES[kind]) for kind in ("cuda", "cpu"))
    return (next(sizes) - next(sizes)) // torch.float32.itemsize


class _Rows:
    """`rows_` for the first chunk of a CPU; the others are like it, and Triton needs no space."""

    def __init__(self, config: TrainConfig) -> None:
        self.done = config.workers.gpus > 0

    def __call__(
        self,
        logits_CV: Tensor,
        target_C: Tensor,
        position_C: Tensor,
        objective: Objective,
        seed: int,
        softcap: float | None = None,
    ) -> Tensor:
        if self.done:
            return logits_CV.new_empty(4, len(logits_CV), dtype=torch.float32)
        self.done = True
        return rows_(logits_CV, target_C, position_C, objective, seed, softcap)


def _hidden(model: Any, rows: int, length: int) -> Tensor:
    """`hidden_states` of full rows, [N, D]."""
    model = without_adapters(model)
    position_BS = torch.arange(length).expand(rows, length)
    ids_BS = torch.zeros(rows, length, dtype=torch.int64)
    if attention_name(model.config) != PACKED:
        seen = model.base_model(input_ids=ids_BS, position_ids=position_BS, use_cache=False)
        return cast(Tensor, seen.last_hidden_state.flatten(0, 1))
    seen = model.base_model(
        input_ids=ids_BS.reshape(1, -1),
        position_ids=position_BS.reshape(1, -1),
        attention_mask=no_mask(ids_BS.device),
        use_cache=False,
        lengths=Lengths([length] * rows),
    )
    return cast(Tensor, seen.last_hidden_state[0])
