"""The memory of one training step, counted without weights, data or a device.

The step is the real one (forward, loss, backward, optimizer) on torch's fake tensors, which have
shapes and no contents. A ledger counts the bytes of their storages by kind, at the moment of the
step that uses most. Every packed row is assumed to be one full example with all tokens trained,
which is the largest possible step.

Shapes: B packed rows, S sequence length (tokens per packed row), N = B S tokens, D width, C rows of
a chunk of logits, V vocabulary.
"""

import math
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from otr._compat import (
    FakeTensorMode,
    TorchDispatchMode,
    adapters_off,
    attention_name,
    reads_number,
    storage_key,
    tree_leaves,
)
from otr.config import TrainConfig
from otr.loss import fused
from otr.loss.objective import Objective
from otr.loss.rows import ALONE, FIGURES, Compared, loss_and_gradient_
from otr.models.attention import PACKED, register
from otr.models.freeze import freeze_equally
from otr.models.layout import Layout
from otr.models.load import as_base
from otr.models.parts import head, hidden_states
from otr.models.quantize import BYTES_PER_WEIGHT, layers_to_quantize
from otr.optim import make_optimizer

Kind = Literal["parameters", "gradients", "optimizer", "activations", "loss"]


@dataclass(frozen=True)
class Footprint:
    """Bytes in use at the same time, by kind."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    """Tensors stored for the backward pass, and its temporary tensors."""
    loss: int
    """A chunk of logits and the gradients that the loss returns."""

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(getattr(self, field.name) for field in fields(self))


def footprint(
    architecture: PretrainedConfig,
    config: TrainConfig,
    *,
    split: bool = False,
    frozen_in: nn.Module | None = None,
) -> list[Footprint]:
    """Count what a worker with the whole model holds.

    Args:
        architecture: the model's config, with the attention that the run would use.
        config: the run; its workers and strategy do not matter here.
        split: weights have the precision of the products, as FSDP2 makes them layer by layer; if
            not, low-precision copies exist besides, as under autocast.
        frozen_in: model whose frozen parameters are frozen here too; of the layers only those that
            are frozen in all of them. None: all are trained.

    Returns:
        Two moments, each of which grows linearly with the number of layers: the peak of the first
        half of the step, gradients not counted, and the peak of the second half.
    """
    ledger = _Ledger()
    dtype = getattr(torch, config.model.dtype) if split else torch.float32
    with warnings.catch_warnings(action="ignore"):  # transformers uses deprecated names
        model = _model(architecture, config)
        if frozen_in is not None:
            freeze_equally(model, frozen_in)
        base = None
        if config.needs_base:
            base = as_base(cast(PreTrainedModel, _model(architecture, config)), config.model.dtype)
        with FakeTensorMode():
            for each in filter(None, (model, base)):
                _to_cpu(each, dtype)
            with ledger:
                _step(model, base, config, ledger)
    return [Footprint(**peak) for peak in ledger.peaks]


class _Ledger(TorchDispatchMode):
    """Counts the bytes of live storages by kind, and stores the largest sums.

    Operations that depend on contents get fixed answers: a number that is read is 1, a mask is all
    True.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kind: Kind = "activations"
        self.live = {field.name: 0 for field in fields(Footprint)}
        self.half = 0
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
        self.record_peak()
        return out

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is already counted."""
        storage = tensor.untyped_storage()
        key = storage_key(tensor)
        if key not in self._known:
            self._count(key, self.kind, storage.nbytes())
            weakref.finalize(storage, self._forget, key)

    def move(self, tensor: Tensor, kind: Kind) -> None:
        """Count a tensor's storage as another kind from now on."""
        key = storage_key(tensor)
        size = self._forget(key)
        self._count(key, kind, size)

    def record_peak(self) -> None:
        """Store the current sums if they are the largest of this half of the step."""
        if self._size(self.live) > self._size(self.peaks[self.half]):
            self.peaks[self.half] = dict(self.live)

    def _size(self, sums: dict[str, int]) -> int:
        """Return the sum that defines a peak.

        In the backward pass gradients replace activations gradually, so the first half's peak is
        the moment before any gradient exists.
        """
        return sum(sums.values()) - (sums["gradients"] if self.half == 0 else 0)

    @contextmanager
    def counting(self, kind: Kind) -> Iterator[None]:
        """Count new storages as this kind meanwhile."""
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
    """Build the model on the meta device, configured as in the run."""
    register()
    name = attention_name(architecture)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            architecture,
            dtype=torch.float32,
            trust_remote_code=config.model.trust_remote_code,
            # The others store the same tensors as PACKED, and not all of them run on a CPU.
            attn_implementation=name if name in ("sdpa", "eager") else PACKED,
        )
    quantized = [*layers_to_quantize(model)] if config.lora.quantize != "none" else []
    if config.lora.rank:
        from otr.models.lora import add_adapters

        model = add_adapters(model, config.lora)
    for _, layer in quantized:
        _Quantized.replace(layer)
    if config.memory.gradient_checkpointing:
        # Fake tensors have no random state to preserve.
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
        if config.lora.rank:
            model.enable_input_require_grads()
    return model


class _Quantized(nn.Module):
    """A layer with as many bytes as bitsandbytes' Linear4bit, of which fake tensors can be made.

    Its weight is made anew in each pass, and is not stored for the backward pass.
    """

    packed: nn.Parameter
    shape: torch.Size
    """Outputs and inputs."""
    conv: bool
    """Whether the layer is transformers' Conv1D, whose weight is transposed."""

    @staticmethod
    def replace(layer: nn.Module) -> None:
        """Turn a linear layer on the meta device into one in 4 bits, in place."""
        weight, conv = cast(Tensor, layer.weight), not isinstance(layer, nn.Linear)
        shape = weight.T.shape if conv else weight.shape
        size = math.ceil(weight.numel() * BYTES_PER_WEIGHT)
        del layer.weight
        layer.__class__ = _Quantized
        packed = torch.empty(size, dtype=torch.uint8, device="meta")
        layer.packed = nn.Parameter(packed, requires_grad=False)
        vars(layer).update(shape=shape, conv=conv)

    @property
    def weight(self) -> Tensor:
        """The weight in float32, which DoRA reads."""
        weight = self.packed.new_empty(self.shape, dtype=torch.float32)
        return weight.T if self.conv else weight

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer's product, with autocast's precision."""
        out = _QuantizedProduct.apply(x, self.packed, self.shape)
        return out if self.bias is None else out + self.bias


class _QuantizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return nn.functional.linear(x, packed.new_empty(shape, dtype=torch.float32))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        weight = packed.new_empty(ctx.shape, dtype=torch.float32).to(gradient.dtype)
        return gradient @ weight, None, None


def _to_cpu(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace meta tensors by CPU tensors, which are fake inside a `FakeTensorMode`."""
    made: dict[Tensor, Tensor] = {}  # ties stay ties
    for module in model.modules():
        parameters = module.named_parameters(recurse=False, remove_duplicate=False)
        buffers = module.named_buffers(recurse=False, remove_duplicate=False)
        for name, old in [*parameters, *buffers]:
            trained = isinstance(old, nn.Parameter)
            if old not in made:
                # Neither the bits of _Quantized nor what a base model has in bfloat16.
                cast_ = trained and old.dtype == torch.float32
                new = torch.empty(old.shape, dtype=dtype if cast_ else old.dtype)
                made[old] = nn.Parameter(new, old.requires_grad) if trained else new
            setattr(module, name, made[old])


def _step(model: Any, base: Any, config: TrainConfig, ledger: _Ledger) -> None:
    """Run one optimizer step under the ledger; the base may be None."""
    model.train()
    with ledger.counting("parameters"):
        for each in filter(None, (model, base)):
            for tensor in (*each.parameters(), *each.buffers()):
                ledger.add(tensor)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = _warm_up(model, trained, config, ledger)
    done = 0

    def on_gradient(parameter: Tensor) -> None:
        nonlocal done
        done += 1
        assert parameter.grad is not None
        ledger.move(parameter.grad, "gradients")
        if done == max(1, len(trained) // 2):
            ledger.half = 1

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(on_gradient)
    low = config.model.dtype == "bfloat16" and head(model).weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        loss = _loss(model, base, config, ledger)
        loss.backward()
    extra = torch.empty(_extra_step_floats(trained, config))
    optimizer.step()
    del extra


def _warm_up(
    model: Any, trained: Sequence[Tensor], config: TrainConfig, ledger: _Ledger
) -> torch.optim.Optimizer:
    """Take the previous step: it leaves optimizer state and, if they accumulate, gradients."""
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


def _loss(model: Any, base: Any, config: TrainConfig, ledger: _Ledger) -> Tensor:
    """Compute a micro-batch's loss as `Policy` does, but independent of the tokens."""
    of_base = _base_states(model, base, config) if config.kl_weight else None
    hidden_ND = _hidden(model, config.micro_batch_size, config.data.sequence_length)
    lm_head = head(model)
    scored_N = torch.arange(len(hidden_ND))
    dtype = getattr(torch, config.model.dtype)
    with ledger.counting("loss"):
        hidden_TD = hidden_ND[scored_N]
        if of_base is not None:
            weight_VD = of_base.weight_VD.detach().to(dtype)
            of_base = fused.BaseStates(of_base.hidden_TD[scored_N], weight_VD, of_base.bias)
        logits = len(scored_N) * len(lm_head.weight) * (1 if of_base is None else 2)
        extra = torch.empty(_extra_chunk_floats(logits, dtype, config))
        loss_sum, _ = fused.LinearLoss.apply(
            hidden_TD if lm_head.logit_scale == 1 else hidden_TD * lm_head.logit_scale,
            lm_head.weight,
            lm_head.bias,
            scored_N,
            scored_N,
            fused.Settings(
                config.objective,
                0,
                lm_head.softcap,
                dtype,
                _FirstChunk(config),
                start=torch.empty(len(scored_N)) if config.objective.needs_start else None,
                base=of_base,
                kl_weight=config.kl_weight,
            ),
        )
        del extra
    return cast(Tensor, loss_sum)


@torch.no_grad()
def _base_states(model: Any, base: Any, config: TrainConfig) -> fused.BaseStates:
    with nullcontext() if base is not None else adapters_off(model):
        used = model if base is None else base
        hidden_ND = _hidden(used, config.micro_batch_size, config.data.sequence_length)
        return fused.BaseStates(hidden_ND, head(used).weight, head(used).bias)


def _extra_step_floats(trained: Sequence[Tensor], config: TrainConfig) -> int:
    """Return how many floats the optimizer's step holds that fake tensors don't show.

    On the CPU bitsandbytes' step is one operation that makes five float32 tensors of the size of a
    parameter (bitsandbytes/backends/cpu/ops.py, 0.50); on a GPU it makes none.
    """
    if config.optim.optimizer != "adamw_8bit" or config.workers.gpus:
        return 0
    return 5 * max(parameter.numel() for parameter in trained)


def _extra_chunk_floats(logits: int, dtype: torch.dtype, config: TrainConfig) -> int:
    """Return how many floats more a GPU's chunk of logits has than the CPU's, which is counted."""
    if not config.workers.gpus:
        return 0
    sizes = (min(logits * dtype.itemsize, fused.CHUNK_BYTES[kind]) for kind in ("cuda", "cpu"))
    return (next(sizes) - next(sizes)) // torch.float32.itemsize


class _FirstChunk:
    """Backend that computes the first chunk on a CPU only.

    Later chunks use the same memory, and Triton's kernels use none.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.done = config.workers.gpus > 0

    def __call__(  # noqa: PLR0913 - the signature of a backend
        self,
        logits_CV: Tensor,
        target_C: Tensor,
        position_C: Tensor,
        objective: Objective,
        seed: int,
        softcap: float | None = None,
        factor: Tensor | None = None,
        weight_C: Tensor | None = None,
        compared: Compared = ALONE,
    ) -> Tensor:
        if self.done:
            figures = FIGURES + (compared.base_CV is not None)
            return logits_CV.new_empty(figures, len(logits_CV), dtype=torch.float32)
        self.done = True
        return loss_and_gradient_(
            logits_CV, target_C, position_C, objective, seed, softcap, factor, weight_C, compared
        )


def _hidden(model: Any, rows: int, length: int) -> Tensor:
    """Compute the hidden states of full packed rows, [N, D]."""
    position_BS = torch.arange(length).expand(rows, length)
    layout = Layout((length,) * rows, position_BS, torch.arange(rows * length))
    return hidden_states(model, torch.zeros(rows, length, dtype=torch.int64), layout)
