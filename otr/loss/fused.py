"""The language-model head and the loss as one autograd function without a [T, V] tensor.

The forward pass goes through the hidden states in chunks. For each chunk it computes the logits, a
backend replaces them by their gradient, and two products with that give the chunk's parts of the
gradients of the hidden states and the weight. The backward pass only returns these gradients. With
a base model to compare with, a chunk's base logits are computed beside its logits.

Shapes: T scored positions, C positions of a chunk, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otr.loss import kernels
from otr.loss.objective import Objective
from otr.loss.rows import ALONE, FIGURES, Compared

# Of a chunk's logits. Smaller chunks read the weight and add to its gradient more often. On a GPU
# this much is planned for, and a chunk is as large as free memory allows: see `_chunk_bytes`.
CHUNK_BYTES = {"cpu": 320 * 2**20, "cuda": 768 * 2**20}
_LARGEST_BYTES, _SMALLEST_BYTES = 3 * 2**30, 48 * 2**20  # of a chunk on a GPU
_ALIGNED = 64  # logits: rows in memory begin at multiples, so that loads have 16 bytes for any V
_BLOCK_ROWS = 8192  # rows of the weight's gradient whose product is rounded before it is added


class Backend(Protocol):
    """`otr.loss.rows.loss_and_gradient_`, or a kernel with the same result."""

    def __call__(  # noqa: D102, PLR0913
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
    ) -> Tensor: ...


@dataclass(frozen=True)
class BaseStates:
    """A frozen base model's predictions: its head's inputs, and its head.

    Scale and soft cap of the logits are those of the trained model.
    """

    hidden_TD: Tensor
    """A row for each row of the trained model's hidden states."""
    weight_VD: Tensor
    """A row for each token; the width may be another one. A plain tensor or a DTensor."""
    bias: Tensor | None = None

    def logits(self, rows: slice, dtype: torch.dtype, out: Tensor) -> Tensor:
        """Compute the logits of some rows in the memory of `out`, before scale and soft cap."""
        hidden_CD = self.hidden_TD[rows].to(dtype)
        logits_CV = torch.mm(hidden_CD, self.weight_VD.T, out=out[: len(hidden_CD)])
        if self.bias is not None:
            logits_CV += self.bias
        return logits_CV


@dataclass(frozen=True)
class Settings:
    """The arguments of `LinearLoss` that are not tensors."""

    objective: Objective
    seed: int
    softcap: float | None
    dtype: torch.dtype
    """Of the matrix products."""
    backend: Backend
    factor: Tensor | None = None
    """A number on the device by which loss and gradients are multiplied; the figures are not."""
    weight: Tensor | None = None
    """A number per position by which its loss and gradient are multiplied, [T]; KL left out."""
    start: Tensor | None = None
    """Log-probability of each target before training, for objectives that need it, [T]."""
    base: BaseStates | None = None
    """Base model to compare with; its weight is in `dtype`."""
    kl_weight: float = 0.0
    """Factor of KL(base || p) in the loss."""

    def compared(self, rows: slice, out: Tensor | None) -> Compared:
        """Return what a chunk is compared with; the base's logits are computed into `out`."""
        start = None if self.start is None else self.start[rows]
        if self.base is None or out is None:
            return Compared(start)
        return Compared(start, self.base.logits(rows, self.dtype, out), self.kl_weight)


class LinearLoss(torch.autograd.Function):
    """(hidden, weight, bias, target, position, settings) -> (summed loss, figures [F, T]).

    The figures of each position are those of `otr.loss.rows.loss_and_gradient_`. The result can go
    backward once and has no second derivative.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd tracks only tensors that are arguments themselves
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_T: Tensor,
        position_T: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        """Compute losses and gradients, chunk by chunk."""
        weight = weight_VD.to(settings.dtype)
        inputs = _Inputs(hidden_TD, weight_VD, bias_V)
        reserved = inputs.gradient_bytes(ctx.needs_input_grad)
        models = 1 if settings.base is None else 2
        rows = _chunk_rows(len(hidden_TD), weight, reserved, models)
        starts = range(0, len(hidden_TD), rows)
        gradients = _Gradients(inputs, ctx.needs_input_grad, weight, num_chunks=len(starts))
        stride = math.ceil(len(weight) / _ALIGNED) * _ALIGNED
        logits, *of_base = weight.new_empty(models, rows, stride)[:, :, : len(weight)]
        figures = [weight.new_empty(FIGURES + len(of_base), 0)]
        for start in starts:
            chunk = slice(start, start + rows)
            hidden_CD = hidden_TD[chunk].to(weight.dtype)
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias_V is not None:
                logits_CV += bias_V
            figures.append(
                settings.backend(
                    logits_CV,
                    target_T[chunk],
                    position_T[chunk],
                    settings.objective,
                    settings.seed,
                    settings.softcap,
                    settings.factor,
                    None if settings.weight is None else settings.weight[chunk],
                    settings.compared(chunk, of_base[0] if of_base else None),
                )
            )
            gradients.add(chunk, logits_CV, hidden_CD)
        ctx.gradients = gradients.in_input_dtypes()
        figures_FT = torch.cat(figures, 1)
        ctx.mark_non_differentiable(figures_FT)
        loss_sum = figures_FT[0].sum()
        return loss_sum if settings.factor is None else loss_sum * settings.factor, figures_FT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Return the forward pass's gradients, scaled by the gradient of the loss."""
        if ctx.gradients is None:
            raise RuntimeError("linear_token_loss goes backward once: call it again for a second")
        gradients, ctx.gradients = ctx.gradients, None
        for grad in gradients:
            if grad is not None:
                _multiply_(grad, grad_loss)
        return *gradients, None, None, None


@dataclass(frozen=True)
class _Inputs:
    """The tensors that `LinearLoss` differentiates by."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def gradient_bytes(self, needed: Sequence[bool]) -> int:
        """Return the memory of the gradients that are needed, in float32 at most."""
        pairs = zip((self.hidden, self.weight, self.bias), needed, strict=False)
        wanted = [tensor for tensor, need in pairs if need and tensor is not None]
        return sum(tensor.numel() * max(4, tensor.element_size()) for tensor in wanted)


class _Gradients:
    """Sums of the gradients of hidden states, weight and bias, as far as they are needed."""

    def __init__(
        self, inputs: _Inputs, needed: Sequence[bool], weight: Tensor, *, num_chunks: int
    ) -> None:
        hidden_needed, weight_needed, bias_needed = needed[:3]
        self.factor, self.inputs = weight, inputs
        self.hidden = torch.empty_like(inputs.hidden) if hidden_needed else None
        self.weight: Tensor | None = None  # made by the first product
        self.weight_dtype: torch.dtype | None = None
        if weight_needed:
            rounds = num_chunks > 1 and weight.dtype.itemsize < torch.float32.itemsize
            precise = torch.promote_types(inputs.weight.dtype, torch.float32)
            self.weight_dtype = precise if rounds else inputs.weight.dtype
        self.bias = None
        if bias_needed:
            precise = torch.promote_types(weight.dtype, torch.float32)
            self.bias = weight.new_zeros(len(weight), dtype=precise)

    def add(self, chunk: slice, slope_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add a chunk: the gradient of its logits times the factors of their product."""
        if self.hidden is not None:
            self.hidden[chunk] = slope_CV @ self.factor
        if self.weight_dtype is not None:
            self.weight = _add_product(self.weight, slope_CV.T, hidden_CD, self.weight_dtype)
        if self.bias is not None:
            self.bias += slope_CV.sum(0, dtype=self.bias.dtype)

    def in_input_dtypes(self) -> list[Tensor | None]:
        """Return the gradients, each in the dtype of its input."""
        if self.weight is None and self.weight_dtype is not None:  # there was no chunk
            self.weight = torch.zeros_like(self.inputs.weight)
        sums = (self.hidden, self.weight, self.bias)
        pairs = zip(sums, (self.inputs.hidden, self.inputs.weight, self.inputs.bias), strict=True)
        return [
            None if grad is None or tensor is None else grad.to(tensor.dtype)
            for grad, tensor in pairs
        ]


def _chunk_rows(rows: int, weight_VD: Tensor, gradient_bytes: int, models: int = 1) -> int:
    """Return the positions per chunk for chunks of nearly equal size; at least 1.

    The logits of all models together take what those of one model may.
    """
    budget = _chunk_bytes(weight_VD.device, gradient_bytes) // models
    most = max(1, budget // (weight_VD.element_size() * len(weight_VD)))
    chunks = max(1, math.ceil(rows / most))
    return max(1, math.ceil(rows / chunks))


def _chunk_bytes(device: torch.device, gradient_bytes: int) -> int:
    """Return the size of a chunk of logits.

    On a GPU it is at most half of the memory that is free or cached and that the gradients leave,
    in steps of two, so that it seldom changes from one call to the next, and with it how sums are
    rounded; under torch's deterministic algorithms it never does.
    """
    if device.type != "cuda":
        return CHUNK_BYTES["cpu"]
    if torch.are_deterministic_algorithms_enabled():
        return CHUNK_BYTES["cuda"]
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _largest_chunk(free - gradient_bytes)


def _largest_chunk(free: int) -> int:
    """Return the size in bytes of a chunk of logits on a GPU with `free` bytes of memory."""
    size = _LARGEST_BYTES
    while size > max(free // 2, _SMALLEST_BYTES):
        size //= 2
    return size


def _add_product(
    total_VD: Tensor | None, left_VC: Tensor, right_CD: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return total + left @ right in a dtype that may have a higher precision; None is 0.

    The total is changed in place.
    """
    if dtype == left_VC.dtype:
        if total_VD is None:
            return left_VC @ right_CD
        return total_VD.addmm_(left_VC, right_CD)
    if left_VC.is_cuda:
        if total_VD is None:
            return torch.mm(left_VC, right_CD, out_dtype=dtype)
        return torch.addmm(total_VD, left_VC, right_CD, out_dtype=dtype, out=total_VD)
    first = total_VD is None
    if total_VD is None:
        total_VD = left_VC.new_empty(len(left_VC), right_CD.shape[1], dtype=dtype)
    blocks = zip(total_VD.split(_BLOCK_ROWS), left_VC.split(_BLOCK_ROWS), strict=True)
    for total, left in blocks:
        if first:
            total.copy_(left @ right_CD)
        else:
            total += left @ right_CD
    return total_VD


def _multiply_(grad: Tensor, factor: Tensor) -> None:
    """Multiply a gradient by a number on its device, rounding once; by 1 costs nothing.

    On a GPU the number is not read by the host, which would have to wait for it.
    """
    if not grad.is_cuda:
        number = float(factor)  # a tensor would be rounded to the gradient's dtype
        if number != 1:
            grad.mul_(number)
    elif grad.dtype.itemsize > torch.float32.itemsize:
        grad.mul_(factor)
    elif kernels.available(grad.device):
        from otr.loss.kernels.scaling import multiply_  # triton is optional

        multiply_(grad, factor)
    else:
        for block in grad.split(_BLOCK_ROWS):
            block.copy_(block.float() * factor)
