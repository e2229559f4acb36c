"""Loss and gradient of rows of logits, the gradient in the logits' place: the way of torch alone.

In: logits [C, V] of scored rows, their targets and counters. Out: four figures a row, and in place
of the logits the gradient of the summed loss. Every objective's gradient has the one form

    dz = P p - Q q - Y e_y - M sum_j e_(a_j)

with four numbers a row (`Parts`) and the misses a_j, drawn from q without y. All of it is local to
a row, so a chunk goes through in tiles of a few rows that stay in the cache.

Shapes: C rows of a chunk, R rows of a tile, V vocabulary, K draws.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otr.draws import BLOCK, HIT, WHICH_BLOCK, WHICH_ENTRY, draw_tokens, uniforms
from otr.objective import Objective

TILE_BYTES = 8 * 2**20  # of one scratch tensor; up to three are in use


class Parts(NamedTuple):
    """The numbers of a row's gradient; None where no row has that part."""

    p: Tensor
    q: Tensor | None
    target: Tensor
    miss: Tensor | None


def parts(objective: Objective, p_C: Tensor, q_C: Tensor, hit_C: Tensor) -> Parts:
    """Of rows with the target's probabilities p and q and its share `hit_C` of the draws."""
    if objective.name == "sft":
        return Parts(torch.ones_like(p_C), None, torch.ones_like(p_C), None)
    if objective.name == "dft":
        return Parts(p_C, None, p_C, None)
    beta, scale = objective.mismatch_reward, objective.reward_scale
    reward_C = scale * (hit_C + beta * (1 - hit_C))
    if beta == 0:
        return Parts(reward_C, None, reward_C, None)
    if objective.estimator == "expected":
        every_C = torch.full_like(p_C, scale * beta)
        return Parts(reward_C, every_C, scale * (1 - beta) * hit_C, None)
    miss_C = torch.full_like(p_C, scale * beta / objective.num_samples)
    if objective.estimator == "half":
        miss_C = miss_C * (1 - q_C)
    return Parts(reward_C, None, scale * hit_C, miss_C)


class Rows(NamedTuple):
    """Scored rows, and the uniforms of their draws: [C, K], or [C, 0] of what is not drawn."""

    logits: Tensor
    target: Tensor
    hit: Tensor
    block: Tensor
    entry: Tensor

    def tile(self, start: int, size: int) -> "Rows":
        """Some of them."""
        return Rows(*(tensor[start : start + size] for tensor in self))


def rows_(
    logits_CV: Float[Tensor, "C V"],
    target_C: Int[Tensor, " C"],
    position_C: Int[Tensor, " C"],
    objective: Objective,
    seed: int,
    softcap: float | None = None,
) -> Float[Tensor, "4 C"]:
    """Loss, NLL, hit share and entropy of each row; the logits become their gradient."""
    hits = objective.num_samples if objective.draws_hits else 0
    misses = objective.num_samples if objective.draws_misses else 0
    words = ((HIT, hits), (WHICH_BLOCK, misses), (WHICH_ENTRY, misses))
    drawn = (uniforms(seed, position_C, number, word=word) for word, number in words)
    rows = Rows(logits_CV, target_C, *drawn)
    count, vocabulary = logits_CV.shape
    dtype = torch.promote_types(logits_CV.dtype, torch.float32)
    widest = max(vocabulary, BLOCK * misses)
    size = min(count, max(1, TILE_BYTES // (dtype.itemsize * widest)))
    buffers = 3 if objective.name == "otr" else 2
    scratch = logits_CV.new_empty(buffers, size, vocabulary, dtype=dtype)
    tiles = [_tile_(rows.tile(i, size), objective, scratch, softcap) for i in range(0, count, size)]
    return torch.cat(tiles, dim=1)


def _tile_(rows: Rows, objective: Objective, scratch: Tensor, softcap: float | None) -> Tensor:
    logits_RV, target_R1 = rows.logits, rows.target[:, None]
    z_RV, p_RV, *more = scratch[:, : len(logits_RV)]
    z_RV.copy_(logits_RV)
    if softcap is not None:
        z_RV.div_(softcap).tanh_().mul_(softcap)
    z_RV.sub_(z_RV.amax(1, keepdim=True)).clamp_(min=torch.finfo(z_RV.dtype).min)
    torch.softmax(z_RV, 1, out=p_RV)
    lse_R = -p_RV.amax(1).log()  # of the shifted logits, of which the largest is 0
    logp_R = z_RV.gather(1, target_R1).squeeze(1) - lse_R
    entropy_R = lse_R - _dot(p_RV, z_RV)
    p_y_R = logp_R.exp()
    q_RV, q_y_R = p_RV, p_y_R
    if more:
        q_RV = torch.div(z_RV, objective.kappa, out=more[0])
        torch.softmax(q_RV, 1, out=q_RV)
        q_y_R = q_RV.gather(1, target_R1).squeeze(1)
    hit_R = q_y_R
    if objective.draws_hits:
        hit_RK = rows.hit < q_y_R[:, None]
        hit_R = hit_RK.to(q_y_R.dtype).mean(1)
    part = parts(objective, p_y_R, q_y_R, hit_R)
    loss_R = -torch.where(part.target == 0, 0, part.target * logp_R)
    if part.q is not None:
        loss_R -= part.q * (_dot(q_RV, z_RV) - lse_R)
        p_RV.mul_(part.p[:, None]).addcmul_(q_RV, part.q[:, None], value=-1)
    else:
        p_RV.mul_(part.p[:, None])
    p_RV.scatter_add_(1, target_R1, -part.target[:, None])
    if part.miss is not None:
        miss_RK = draw_tokens(q_RV.scatter_(1, target_R1, 0), rows.block, rows.entry)
        weight_RK = part.miss[:, None].expand(miss_RK.shape)
        if objective.draws_hits:
            weight_RK = weight_RK.masked_fill(hit_RK, 0)
        loss_R -= (weight_RK * (z_RV.gather(1, miss_RK) - lse_R[:, None])).sum(1)
        p_RV.scatter_add_(1, miss_RK, -weight_RK)
    if softcap is not None:
        p_RV.mul_(_softcap_slope(logits_RV, softcap))
    logits_RV.copy_(p_RV)
    return torch.stack([loss_R, -logp_R, hit_R, entropy_R])


def _dot(a_RV: Tensor, b_RV: Tensor) -> Tensor:
    return torch.linalg.vecdot(a_RV, b_RV)


def _softcap_slope(logits_RV: Tensor, softcap: float) -> Tensor:
    """Derivative of softcap * tanh(z / softcap)."""
    precise = torch.promote_types(logits_RV.dtype, torch.float32)
    return 1 - (logits_RV.to(precise) / softcap).tanh_().square_()
