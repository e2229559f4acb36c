"""`otr.loss.rows.loss_and_gradient_` in Triton, with two passes over a chunk of logits.

The first pass reads every logit for the statistics; the second replaces it by its gradient. A draw
reads one block of BLOCK logits. The few entries that draws and target touch are computed
separately, in float32, and written last, so that each is rounded once.

Shapes: C rows of logits in a chunk (one per scored position), V vocabulary, N blocks, K draws.
"""

from typing import NamedTuple

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss.draws import BLOCK, RowKeys, row_keys
from otr.loss.kernels import triton_rows as kernel
from otr.loss.objective import Objective
from otr.loss.rows import Coefficients, gradient_coefficients

_SPAN = 2048  # logits that a program processes at once; a multiple of BLOCK
_DRAWS = 32  # draws of a row that a program processes at once


def loss_and_gradient_(
    logits_CV: Float[Tensor, "C V"],
    target_C: Int[Tensor, " C"],
    position_C: Int[Tensor, " C"],
    objective: Objective,
    seed: int,
    softcap: float | None = None,
) -> Float[Tensor, "4 C"]:
    """Return loss, NLL, hit share and entropy of each row; replace the logits by their gradient."""
    chunk = _Chunk(logits_CV, target_C, objective, softcap or 0.0)
    stats = chunk.statistics()
    logp_C1, q_C1 = chunk.at(target_C[:, None], stats)
    logp_C, q_C = logp_C1.squeeze(1), q_C1.squeeze(1)
    hit_C, token_CK = chunk.draw(row_keys(seed, position_C), q_C, stats)
    part = gradient_coefficients(objective, logp_C.exp(), q_C, hit_C)
    loss_C = -torch.where(part.target == 0, 0, part.target * logp_C)
    if part.q is not None:
        loss_C -= part.q * (stats.mean_q - stats.lse)
    if part.miss is not None:
        logp_CK, _ = chunk.at(token_CK, stats)
        missed_CK = token_CK != target_C[:, None]
        loss_C -= part.miss * torch.where(missed_CK, logp_CK, 0).sum(1)
    chunk.gradient_(part, token_CK, stats)
    return torch.stack([loss_C, -logp_C, hit_C, stats.lse - stats.mean])


class _Statistics(NamedTuple):
    """Statistics of each row's logits minus its largest (`top`); lse is log-sum-exp.

    `blocks` [C, N] are the blocks' log-sum-exps of z / kappa without the target.
    """

    top: Tensor
    lse: Tensor
    lse_q: Tensor
    mean: Tensor
    mean_q: Tensor
    blocks: Tensor


class _Chunk(NamedTuple):
    """Rows of logits and the kernels' other arguments; `cap` is the soft cap, 0 for none."""

    logits: Tensor
    target: Tensor
    objective: Objective
    cap: float

    def statistics(self) -> _Statistics:
        """Run the first pass."""
        rows, width = self.logits.shape
        blocks = triton.cdiv(width, BLOCK) if self.objective.draws_misses else 0
        tempered = self.objective.name == "otr"
        top, lse, lse_q, mean, mean_q = self.logits.new_empty(5, rows, dtype=torch.float32)
        block_CN = self.logits.new_empty(rows, blocks, dtype=torch.float32)
        stats = _Statistics(top, lse, lse_q, mean, mean_q, block_CN)
        kernel.statistics[(rows,)](
            self.logits,
            self.target,
            *stats,
            width,
            self.logits.stride(0),
            blocks,
            1 / self.objective.kappa,
            self.cap,
            TEMPERED=tempered,
            BLOCKS=blocks > 0,
            SPAN=_SPAN,
            BLOCK=BLOCK,
        )
        return stats if tempered else stats._replace(lse_q=stats.lse, mean_q=stats.mean)

    def at(self, token_CK: Tensor, stats: _Statistics) -> tuple[Tensor, Tensor]:
        """Return log p and q of some tokens of each row."""
        z_CK = self.logits.gather(1, token_CK).float()
        if self.cap:
            z_CK = self.cap * torch.tanh(z_CK / self.cap)
        z_CK = z_CK - stats.top[:, None]
        q_CK = (z_CK / self.objective.kappa - stats.lse_q[:, None]).exp()
        return z_CK - stats.lse[:, None], q_CK

    def draw(self, keys: RowKeys, q_C: Tensor, stats: _Statistics) -> tuple[Tensor, Tensor]:
        """Return the target's share of the draws, and the tokens drawn (the target for a hit)."""
        objective = self.objective
        if not (objective.draws_hits or objective.draws_misses):
            return q_C, self.target[:, None]
        rows, width = self.logits.shape
        blocks = stats.blocks.shape[1]
        shift_C = stats.top / objective.kappa + stats.lse_q
        hits_C = torch.zeros_like(self.target, dtype=torch.int32)
        drawn = objective.num_samples if objective.draws_misses else 1
        token_CK = self.target[:, None].repeat(1, drawn)
        kernel.draw[(rows,)](
            self.logits,
            self.target,
            *keys,
            stats.top,
            stats.lse_q,
            q_C,
            (stats.blocks - shift_C[:, None]).exp().cumsum(1),
            hits_C,
            token_CK,
            width,
            self.logits.stride(0),
            blocks,
            objective.num_samples,
            1 / objective.kappa,
            self.cap,
            HITS=objective.draws_hits,
            MISSES=objective.draws_misses,
            STEPS=max(1, blocks).bit_length(),
            DRAWS=_DRAWS,
            BLOCK=BLOCK,
        )
        return hits_C / objective.num_samples if objective.draws_hits else q_C, token_CK

    def gradient_(self, part: Coefficients, token_CK: Tensor, stats: _Statistics) -> None:
        """Run the second pass, then write the entries of the target and the draws."""
        rows, width = self.logits.shape
        token_CK = torch.cat([self.target[:, None], token_CK], 1)
        value_CK = self._entries(part, token_CK, stats)
        kernel.gradient_[(rows, triton.cdiv(width, _SPAN))](
            self.logits,
            stats.top,
            stats.lse,
            stats.lse_q,
            part.p,
            part.p if part.q is None else part.q,
            width,
            self.logits.stride(0),
            1 / self.objective.kappa,
            self.cap,
            DENSE_Q=part.q is not None,
            SPAN=_SPAN,
        )
        self.logits.scatter_(1, token_CK, value_CK.to(self.logits.dtype))

    def _entries(self, part: Coefficients, token_CK: Tensor, stats: _Statistics) -> Tensor:
        """Return the gradients at some tokens; equal tokens of a row get equal gradients."""
        logp_CK, q_CK = self.at(token_CK, stats)
        value_CK = part.p[:, None] * logp_CK.exp()
        if part.q is not None:
            value_CK -= part.q[:, None] * q_CK
        at_target_CK = token_CK == self.target[:, None]
        less_CK = part.target[:, None].expand_as(value_CK)
        if part.miss is not None:
            sorted_CK = token_CK.sort(1).values
            count_CK = torch.searchsorted(sorted_CK, token_CK, right=True)
            count_CK -= torch.searchsorted(sorted_CK, token_CK)
            less_CK = torch.where(at_target_CK, less_CK, part.miss[:, None] * count_CK)
        value_CK = value_CK - less_CK
        if self.cap:
            z_CK = self.logits.gather(1, token_CK).float()
            value_CK *= 1 - torch.tanh(z_CK / self.cap).square()
        return value_CK
