"""Loss and gradient of a chunk of logits in torch; the gradient replaces the logits.

Every objective's gradient has the one form

    dz = P p - Q q - Y e_y - M sum_j e_(a_j)

with four numbers per row of logits (`Coefficients`) and the misses a_j, drawn from q without y.
A base model to compare with adds k (p - b), where b is its distribution (`Compared`). Rows are
independent, so a chunk is processed in tiles of a few rows that stay in the cache.

Shapes: C rows of logits in a chunk (one per scored position), R rows of a tile, V vocabulary,
K draws per row, M misses of a tile.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss.draws import (
    BLOCK,
    HIT,
    SMALL,
    WHICH_BLOCK,
    WHICH_ENTRY,
    RowKeys,
    draw_each,
    draw_some,
    row_keys,
    uniforms,
)
from otr.loss.objective import Objective

FIGURES = 5
"""Numbers per row that `loss_and_gradient_` returns; with a base model there is one more."""
TILE_BYTES = 8 * 2**20  # of each of the three to five scratch tensors
DRAW_BYTES = 2**20  # of the uniforms of one word
SMALL_DRAW_NUMBERS = 8  # numbers of scratch memory per draw from a small vocabulary


class Coefficients(NamedTuple):
    """P, Q, Y and M of each row's gradient; None if they are 0 for all rows."""

    p: Tensor
    q: Tensor | None
    target: Tensor
    miss: Tensor | None

    def at_target(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the gradient of each target's logit; p and q are of the targets."""
        slope = self.p * p - self.target
        return slope if self.q is None else slope - self.q * q

    def times(self, factor: Tensor | None) -> "Coefficients":
        """Return the coefficients times a number, or one of each row; None is 1."""
        if factor is None:
            return self
        q = None if self.q is None else self.q * factor
        miss = None if self.miss is None else self.miss * factor
        return Coefficients(self.p * factor, q, self.target * factor, miss)


class Target(NamedTuple):
    """The numbers of each row's target that `Objective.coefficients` takes."""

    p: Tensor
    log_p: Tensor
    q: Tensor
    share: Tensor
    entropy: Tensor
    lse: Tensor
    start: Tensor | None
    """Log-probability before training, for objectives that need it."""


class Compared(NamedTuple):
    """The predictions of other models that a chunk of logits is compared with.

    A field is None if nothing is compared with it.
    """

    start_C: Float[Tensor, " C"] | None = None
    """The target's log-probability before training, for objectives that need it."""
    base_CV: Float[Tensor, "C V"] | None = None
    """The base model's logits, before the soft cap."""
    kl_weight: float = 0.0
    """Factor of KL(base || p) in the loss."""

    def rows(self, rows: slice) -> "Compared":
        """Return a part of the rows."""
        start = None if self.start_C is None else self.start_C[rows]
        return Compared(start, None if self.base_CV is None else self.base_CV[rows], self.kl_weight)


ALONE = Compared()
"""Nothing to compare with."""


def gradient_coefficients(objective: Objective, of: Target) -> tuple[Coefficients, Tensor | None]:
    """Return the coefficients of rows, and what is added to their losses (None: nothing)."""
    if objective.is_weighted:
        weight = _each(objective.weight(torch, of.p, of.log_p, of.entropy), of.p)
        return Coefficients(weight, None, weight, None), None
    if objective.needs_start:
        assert of.start is not None
        weight, loss = objective.of_ratio(torch, (of.log_p - of.start).exp())
        # The loss is otherwise -w log p.
        penalty = torch.where(weight == 0, loss, weight * of.log_p + loss)
        return Coefficients(weight, None, weight, None), penalty
    made = objective.coefficients(torch, of.p, of.q, of.share, of.entropy, of.lse)
    p, q, target, miss, penalty = (_each(number, of.p) for number in made)
    return (
        Coefficients(
            p, q if objective.dense_q else None, target, miss if objective.draws_misses else None
        ),
        penalty if objective.has_penalty else None,
    )


def _each(number: Tensor | float, like: Tensor) -> Tensor:
    """Return a number of each row; an objective may return one for all rows."""
    return number if isinstance(number, Tensor) else torch.full_like(like, number)


class _Rows(NamedTuple):
    """Rows of logits with targets and uniforms: [C, K] per word, [C, 0] if it is not drawn."""

    logits: Tensor
    target: Tensor
    hit: Tensor
    block: Tensor
    entry: Tensor
    weight: Tensor | None
    compared: Compared

    def tile(self, start: int, size: int) -> "_Rows":
        """Return `size` rows from `start` on."""
        rows = slice(start, start + size)
        weight = None if self.weight is None else self.weight[rows]
        logits, target, hit, block, entry = (each[rows] for each in self[:5])
        return _Rows(logits, target, hit, block, entry, weight, self.compared.rows(rows))


def loss_and_gradient_(  # noqa: PLR0913 - the signature of a backend
    logits_CV: Float[Tensor, "C V"],
    target_C: Int[Tensor, " C"],
    position_C: Int[Tensor, " C"],
    objective: Objective,
    seed: int,
    softcap: float | None = None,
    factor: Float[Tensor, ""] | None = None,
    weight_C: Float[Tensor, " C"] | None = None,
    compared: Compared = ALONE,
) -> Float[Tensor, "F C"]:
    """Return the figures of each row; replace the logits by their gradient.

    The figures are loss, NLL, hit share, entropy, and the absolute gradient of the target's logit
    (of its value after a soft cap). With base logits, KL(base || p) is one more, and loss and
    gradient have kl_weight times it. The rest of the loss and gradients of a row is multiplied by
    its weight. The logits' gradient is also multiplied by `factor`, a number on their device; the
    figures are not.
    """
    keys = row_keys(seed, position_C)
    count, vocabulary = logits_CV.shape
    dtype = torch.promote_types(logits_CV.dtype, torch.float32)
    widest = vocabulary
    if objective.draws_misses:
        each = BLOCK if vocabulary > SMALL else SMALL_DRAW_NUMBERS
        widest = max(vocabulary, each * objective.num_samples)
    size = min(count, max(1, TILE_BYTES // (dtype.itemsize * widest)))
    num_scratch = 3 if compared.base_CV is None else 5
    scratch = logits_CV.new_empty(num_scratch, size, vocabulary, dtype=dtype)
    together = max(size, DRAW_BYTES // (4 * objective.num_samples))
    tiles = []
    for start in range(0, count, together):
        chunk = slice(start, start + together)
        hit, block, entry = _draw_uniforms(objective, keys.low[chunk], keys.high[chunk])
        weight = None if weight_C is None else weight_C[chunk].to(dtype)
        rows = _Rows(
            logits_CV[chunk], target_C[chunk], hit, block, entry, weight, compared.rows(chunk)
        )
        with torch.autocast(logits_CV.device.type, enabled=False):  # it rounds vecdot on the CPU
            for first in range(0, len(rows.target), size):
                tiles.append(_tile_(rows.tile(first, size), objective, scratch, softcap, factor))
    return torch.cat(tiles, dim=1)


def _draw_uniforms(objective: Objective, low_C: Tensor, high_C: Tensor) -> list[Tensor]:
    """Draw the uniforms of many rows at once, since a tile has too few for an efficient call."""
    draw_K = torch.arange(objective.num_samples, device=low_C.device)
    wanted = {HIT: objective.draws_hits}
    wanted |= dict.fromkeys((WHICH_BLOCK, WHICH_ENTRY), objective.draws_misses)
    keys = RowKeys(low_C[:, None], high_C[:, None])
    return [uniforms(keys, draw_K[: None if on else 0], word=w) for w, on in wanted.items()]


def _tile_(  # noqa: C901, PLR0915 - one tile, in order
    rows: _Rows,
    objective: Objective,
    scratch: Tensor,
    softcap: float | None,
    factor: Tensor | None,
) -> Tensor:
    """Do the work of `loss_and_gradient_` for the rows of a tile."""
    logits_RV, target_R1 = rows.logits, rows.target[:, None]
    z_RV, p_RV, spare_RV = scratch[:3, : len(logits_RV)]
    compared, unweighted = rows.compared, factor
    z_RV.copy_(logits_RV)
    if softcap is not None:
        z_RV.div_(softcap).tanh_().mul_(softcap)
    top_R1 = z_RV.amax(1, keepdim=True)
    z_RV.sub_(top_R1).clamp_(min=torch.finfo(z_RV.dtype).min)
    torch.softmax(z_RV, 1, out=p_RV)
    lse_R = -p_RV.amax(1).log()  # of the shifted logits, whose maximum is 0
    logp_R = z_RV.gather(1, target_R1).squeeze(1) - lse_R
    entropy_R = lse_R - torch.mul(p_RV, z_RV, out=spare_RV).sum(1)
    p_y_R = logp_R.exp()
    q_RV, q_y_R = p_RV, p_y_R
    if objective.uses_q:
        q_RV = torch.div(z_RV, objective.kappa, out=spare_RV)
        torch.softmax(q_RV, 1, out=q_RV)
        q_y_R = q_RV.gather(1, target_R1).squeeze(1)
    hit_R = q_y_R if objective.rolls_out else p_y_R
    hit_RK = None
    if objective.draws_hits:
        hit_RK = rows.hit < q_y_R[:, None]
        hit_R = hit_RK.sum(1).to(q_y_R.dtype) / objective.num_samples
    start_R = None if compared.start_C is None else compared.start_C.to(z_RV.dtype)
    of = Target(p_y_R, logp_R, q_y_R, hit_R, entropy_R, top_R1.squeeze(1) + lse_R, start_R)
    part, penalty_R = gradient_coefficients(objective, of)
    if rows.weight is not None:
        factor = rows.weight if factor is None else rows.weight * factor
    slope = part.times(factor)
    loss_R = -torch.where(part.target == 0, 0, part.target * logp_R)
    size_R = part.at_target(p_y_R, q_y_R).abs()
    if rows.weight is not None:
        size_R *= rows.weight.abs()
    if penalty_R is not None:
        loss_R += penalty_R
    of_p_R, figures = slope.p, [-logp_R, hit_R, entropy_R, size_R]
    if compared.base_CV is not None:
        of_base = compared.kl_weight if unweighted is None else compared.kl_weight * unweighted
        of_p_R = of_p_R + of_base
        b_RV, kl_R = _base(rows, z_RV, lse_R, scratch[3:, : len(z_RV)], softcap)
        figures.append(kl_R)
    p_RV.mul_(of_p_R[:, None])
    if compared.base_CV is not None:
        p_RV.sub_(b_RV.mul_(of_base))
    if part.q is not None and slope.q is not None:
        loss_R -= part.q * (torch.linalg.vecdot(q_RV, z_RV) - lse_R)
        p_RV.addcmul_(q_RV, slope.q[:, None], value=-1)
    p_RV.scatter_add_(1, target_R1, -slope.target[:, None])
    if part.miss is not None and slope.miss is not None:
        row_M, index_M = _misses(rows, q_RV.scatter_(1, target_R1, 0), hit_RK, objective)
        weight_M = part.miss.index_select(0, row_M)
        logp_M = z_RV.view(-1).index_select(0, index_M) - lse_R.index_select(0, row_M)
        total_R = torch.zeros_like(loss_R, dtype=torch.float64)  # index_add_ adds one by one
        loss_R -= total_R.index_add_(0, row_M, (weight_M * logp_M).double())
        p_RV.view(-1).scatter_add_(0, index_M, -slope.miss.index_select(0, row_M))
    if rows.weight is not None:
        loss_R *= rows.weight
    if compared.base_CV is not None:
        loss_R += compared.kl_weight * kl_R
    if softcap is not None:
        p_RV.mul_(_softcap_slope(logits_RV, softcap))
    logits_RV.copy_(p_RV)
    return torch.stack([loss_R, *figures])


def _base(
    rows: _Rows, z_RV: Tensor, lse_R: Tensor, scratch: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Return the base's distribution, and KL(base || p) of each row.

    Args:
        rows: with base logits.
        z_RV: the model's logits, less their maximum.
        lse_R: their log-sum-exp.
        scratch: [2, R, V]; the first becomes the distribution.
        softcap: of both models' logits.
    """
    assert rows.compared.base_CV is not None
    b_RV, logb_RV = scratch
    b_RV.copy_(rows.compared.base_CV)
    if softcap is not None:
        b_RV.div_(softcap).tanh_().mul_(softcap)
    torch.log_softmax(b_RV, 1, out=logb_RV)
    torch.exp(logb_RV, out=b_RV)
    # A masked token's b is 0, and the difference of its logarithms is made finite.
    difference_RV = logb_RV.clamp_(min=torch.finfo(b_RV.dtype).min).sub_(z_RV)
    return b_RV, torch.linalg.vecdot(b_RV, difference_RV) + lse_R


def _misses(
    rows: _Rows, q_RV: Tensor, hit_RK: Tensor | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """Return each miss's row, and the index of its token in the flattened `q_RV`."""
    count, vocabulary = q_RV.shape
    if hit_RK is None:
        hit_RK = rows.target.new_zeros(count, objective.num_samples, dtype=torch.bool)
    draw_M = (~hit_RK).view(-1).nonzero().squeeze(1)
    row_M = draw_M // objective.num_samples
    if vocabulary > SMALL:  # all draws at once are faster than the misses alone
        token_M = draw_each(q_RV, rows.block, rows.entry).view(-1).index_select(0, draw_M)
    else:
        words = (drawn.view(-1).index_select(0, draw_M) for drawn in (rows.block, rows.entry))
        token_M = draw_some(q_RV, row_M, *words)
    return row_M, row_M * vocabulary + token_M


def _softcap_slope(logits_RV: Tensor, softcap: float) -> Tensor:
    """Return the derivative of softcap * tanh(z / softcap)."""
    precise = torch.promote_types(logits_RV.dtype, torch.float32)
    return 1 - (logits_RV.to(precise) / softcap).tanh_().square_()
