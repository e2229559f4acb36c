"""The head and the loss as one differentiable function that never holds a [T, V] tensor.

In: scored rows of hidden states [T, D] and the head's weight [V, D]. Out: the summed loss and four
figures a row. The rows go through in chunks: logits, their gradient in the same place, its products
with the weight and the hidden states. The backward pass only hands out what then lies ready.

Shapes: T rows, C rows of a chunk, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from otr.loss.objective import Objective

# Logits of a chunk: the fewer its rows, the more often the weight is read and its gradient summed.
CHUNK_BYTES = {"cpu": 384 * 2**20, "cuda": 768 * 2**20}
_BLOCK_ROWS = 8192  # of the weight's gradient, of which a product is rounded and then added


class RowsFunction(Protocol):
    """`otr.loss.rows.rows_`, or a kernel that does the same."""

    def __call__(  # noqa: D102
        self,
        logits_CV: Tensor,
        target_C: Tensor,
        position_C: Tensor,
        objective: Objective,
        seed: int,
        softcap: float | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Settings:
    """Of `LinearLoss`: all that is not a tensor."""

    objective: Objective
    seed: int
    softcap: float | None
    dtype: torch.dtype
    """Of the products."""
    rows_: RowsFunction


class LinearLoss(torch.autograd.Function):
    """(hidden, weight, bias, target, position, settings) -> (sum of the losses, figures [4, T]).

    It can go backward once, and has no second derivative.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd tracks tensors that are arguments of their own
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_T: Tensor,
        position_T: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        """Losses and gradients, chunk by chunk."""
        weight = weight_VD.to(settings.dtype)
        rows = _chunk_rows(len(hidden_TD), weight)
        starts = range(0, len(hidden_TD), rows)
        gradients = _Gradients((hidden_TD, weight_VD, bias_V), ctx.needs_input_grad, weight, starts)
        logits = weight.new_empty(rows, len(weight))
        figures = [weight.new_empty(4, 0)]
        for start in starts:
            chunk = slice(start, start + rows)
            hidden_CD = hidden_TD[chunk].to(weight.dtype)
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias_V is not None:
                logits_CV += bias_V
            figures.append(
                settings.rows_(
                    logits_CV,
                    target_T[chunk],
                    position_T[chunk],
                    settings.objective,
                    settings.seed,
                    settings.softcap,
                )
            )
            gradients.add(chunk, logits_CV, hidden_CD)
        ctx.gradients = gradients.whole()
        figures_4T = torch.cat(figures, 1)
        ctx.mark_non_differentiable(figures_4T)
        return figures_4T[0].sum(), figures_4T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the forward pass, times that of the loss."""
        if ctx.gradients is None:
            raise RuntimeError("linear_token_loss goes backward once: call it again for a second")
        gradients, ctx.gradients = ctx.gradients, None
        factor = float(grad_loss)  # a tensor would be rounded to the gradient's dtype
        for grad in gradients:
            if grad is not None:
                grad.mul_(factor)
        return *gradients, None, None, None


class _Gradients:
    """Of hidden states, weight and bias, as far as they are wanted."""

    def __init__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        wanted: Sequence[bool],
        weight: Tensor,
        chunks: Sequence[int],
    ) -> None:
        hidden_TD, weight_VD, _ = inputs
        for_hidden, for_weight, for_bias = wanted[:3]
        self.factor, self.dtypes = weight, [None if i is None else i.dtype for i in inputs]
        self.hidden = torch.empty_like(hidden_TD) if for_hidden else None
        self.weight = None
        if for_weight:
            rounds = len(chunks) > 1 and weight.dtype.itemsize < torch.float32.itemsize
            precise = torch.promote_types(weight_VD.dtype, torch.float32)
            self.weight = torch.zeros_like(weight_VD, dtype=precise if rounds else None)
        self.bias = None
        if for_bias:
            precise = torch.promote_types(weight.dtype, torch.float32)
            self.bias = weight.new_zeros(len(weight), dtype=precise)

    def add(self, chunk: slice, slope_CV: Tensor, hidden_CD: Tensor) -> None:
        """What a chunk adds: the gradient of its logits times what they were made of."""
        if self.hidden is not None:
            self.hidden[chunk] = slope_CV @ self.factor
        if self.weight is not None:
            _add_product(self.weight, slope_CV.T, hidden_CD)
        if self.bias is not None:
            self.bias += slope_CV.sum(0, dtype=self.bias.dtype)

    def whole(self) -> list[Tensor | None]:
        """The gradients, each in the dtype of its input."""
        sums = (self.hidden, self.weight, self.bias)
        pairs = zip(sums, self.dtypes, strict=True)
        return [None if grad is None else grad.to(dtype) for grad, dtype in pairs]


def _chunk_rows(rows: int, weight_VD: Tensor) -> int:
    """Rows a chunk, so that the chunks are of one size but for rounding; at least 1."""
    budget = CHUNK_BYTES["cpu" if weight_VD.device.type == "cpu" else "cuda"]
    most = max(1, budget // (weight_VD.element_size() * len(weight_VD)))
    chunks = max(1, math.ceil(rows / most))
    return max(1, math.ceil(rows / chunks))


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """Add left @ right to a total that may be of a higher precision than they are."""
    if total_VD.dtype == left_VC.dtype:
        total_VD.addmm_(left_VC, right_CD)
    elif total_VD.is_cuda:
        torch.addmm(total_VD, left_VC, right_CD, out_dtype=total_VD.dtype, out=total_VD)
    else:
        blocks = zip(total_VD.split(_BLOCK_ROWS), left_VC.split(_BLOCK_ROWS), strict=True)
        for total, left in blocks:
            total += left @ right_CD
