"""The public losses: `token_loss` on logits, `linear_token_loss` on hidden states.

Both are pure functions. They return sums over the scored tokens; the caller divides by the number
of tokens over all ranks and micro-batches.

Shapes: T positions, one predicted token each (a position with target IGNORE_INDEX is not scored),
V vocabulary, D width, K draws per token.
"""

import math
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss import kernels
from otr.loss.buckets import sums_by_bucket
from otr.loss.draws import (
    HIT,
    WHICH_BLOCK,
    WHICH_ENTRY,
    RowKeys,
    draw_each,
    draw_seed,
    row_keys,
    uniforms,
)
from otr.loss.fused import Backend, BaseStates, LinearLoss, Settings
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective
from otr.loss.rows import FIGURES, Target, gradient_coefficients, loss_and_gradient_


def token_loss(  # noqa: PLR0913 - the public signature of the design
    logits_TV: Float[Tensor, "T V"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    weight_T: Float[Tensor, " T"] | None = None,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
    start_T: Float[Tensor, " T"] | None = None,
    base_logits_TV: Float[Tensor, "T V"] | None = None,
    kl_weight: float = 0.0,
) -> LossOutput:
    """Compute an objective's loss on logits: the reference that faster versions are tested against.

    A base model keeps the trained one near it: kl_weight KL(base || p) is added to the loss of each
    scored position. With the objective dft this is ASFT (arXiv:2509.23753). Its authors' code
    (zhuchichi56/ASFT, train.py) has this direction of the KL, adds it to the loss of every trained
    token, and weights it with 0.1 by default; the paper's equations were not read.

    Args:
        logits_TV: any floating dtype; the arithmetic is float32 (float64 stays float64).
        target_T: the token that each position should predict, or IGNORE_INDEX.
        objective: which loss.
        weight_T: a number for each position by which its loss is multiplied; the other sums and
            `num_tokens` do not depend on it. Nor does the KL: a token that is not learned, or is
            unlearned, is still kept near the base.
        generator: provides the seed of the draws, one per call; None: torch's default generator.
        position_T: a number for each position (default 0..T-1). A position's draws depend on the
            seed and this number only, however the tokens are batched.
        start_T: log-probability of each target under the model that training started from, which
            objectives with `needs_start` need and others do not read.
        base_logits_TV: logits of the base model, for `kl_weight` and `LossOutput.kl_sum`.
        kl_weight: 0 or more.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, range or device.
        FloatingPointError: the logits of a scored position hold NaN or inf.
    """
    _check(objective, logits_TV, target_T, generator, position_T)
    scored = _scored(target_T, logits_TV.shape[-1], position_T)
    weight_S = _weight(weight_T, scored.row, target_T, check=True)
    start_S = _start(objective, start_T, scored.row, target_T, check=True)
    base_SV = _base_logits(base_logits_TV, logits_TV, scored.row)
    _check_kl_weight(kl_weight, base_SV is not None, "base_logits_TV, the base model's logits")
    seed = _seed(objective, generator)
    figures = _plain(
        logits_TV[scored.row], scored.target, objective, seed, scored.position, start_S, base_SV
    )
    loss_S, size_S = figures[0], figures[4]
    if weight_S is not None:
        weight_S = weight_S.to(figures.dtype)
        loss_S, size_S = loss_S * weight_S, size_S * weight_S.abs()
    if base_SV is not None:
        loss_S = loss_S + kl_weight * figures[FIGURES]
    figures = torch.cat([figures[:4], size_S[None], figures[FIGURES:]])
    return _output(loss_S.sum(), figures.detach(), scored, objective)


def _plain(  # noqa: PLR0913 - what may matter to an objective
    logits_TV: Tensor,
    target_T: Tensor,
    objective: Objective,
    seed: int,
    position_T: Tensor,
    start_T: Tensor | None = None,
    base_logits_TV: Tensor | None = None,
) -> Tensor:
    """Return the figures of each position, all of them scored: [F, T].

    They are those of `otr.loss.rows.loss_and_gradient_`, but the loss is without the KL.
    """
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    target_T1, num_samples = target_T[:, None], objective.num_samples
    logp_TV = torch.log_softmax(logits_TV, dim=-1)
    logp_T = logp_TV.gather(1, target_T1).squeeze(1)
    p_T, entropy_T = logp_T.detach().exp(), torch.special.entr(logp_TV.detach().exp()).sum(-1)
    with torch.no_grad():
        q_TV = torch.softmax(logits_TV / objective.kappa, dim=-1)
        q_T = q_TV.gather(1, target_T1).squeeze(1)
        hit_T = q_T if objective.rolls_out else p_T
        low_T, high_T = row_keys(seed, position_T)
        keys = RowKeys(low_T[:, None], high_T[:, None])
        draw_K = torch.arange(num_samples, device=q_T.device)
        hit_TK = torch.zeros(len(q_T), num_samples, dtype=torch.bool, device=q_T.device)
        if objective.draws_hits:
            hit_TK = uniforms(keys, draw_K, word=HIT) < q_T[:, None]
            hit_T = hit_TK.to(q_T.dtype).mean(-1)
        if objective.draws_misses:
            words = (uniforms(keys, draw_K, word=word) for word in (WHICH_BLOCK, WHICH_ENTRY))
            miss_TK = draw_each(q_TV.scatter(1, target_T1, 0), *words)
    lse_T = torch.logsumexp(logits_TV, dim=-1)  # the penalty's gradient comes from it
    start_T = None if start_T is None else start_T.to(logp_T.dtype)
    of = Target(p_T, logp_T.detach(), q_T, hit_T, entropy_T, lse_T, start_T)
    part, penalty_T = gradient_coefficients(objective, of)
    weight_T = part.target.detach()
    loss_T = -weight_T * logp_T.masked_fill(weight_T == 0, 0)
    if part.q is not None:
        loss_T = loss_T - part.q * (q_TV * logp_TV.masked_fill(q_TV == 0, 0)).sum(-1)
    if part.miss is not None:
        none_TK = hit_TK | (part.miss == 0)[:, None]
        miss_logp_TK = logp_TV.gather(1, miss_TK).masked_fill(none_TK, 0)
        loss_T = loss_T - part.miss * miss_logp_TK.sum(-1)
    if penalty_T is not None:
        loss_T = loss_T + penalty_T
    size_T = part.at_target(p_T, q_T).detach().abs()
    figures = [loss_T, -logp_T, hit_T, entropy_T, size_T]
    if base_logits_TV is not None:
        log_base_TV = torch.log_softmax(base_logits_TV.to(logp_TV.dtype), dim=-1)
        base_TV = log_base_TV.exp()
        ratio_TV = (log_base_TV - logp_TV).masked_fill(base_TV == 0, 0)
        figures.append((base_TV * ratio_TV).sum(-1))
    return torch.stack(figures)


@torch.compiler.disable  # its gradients are computed by hand, which a compiled caller skips
def linear_token_loss(  # noqa: PLR0913 - the public signature of the design
    hidden_TD: Float[Tensor, "T D"],
    weight_VD: Float[Tensor, "V D"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    weight_T: Float[Tensor, " T"] | None = None,
    bias: Float[Tensor, " V"] | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
    scored_S: Int[Tensor, " S"] | None = None,
    factor: float | Float[Tensor, ""] | None = None,
    start_T: Float[Tensor, " T"] | None = None,
    base: BaseStates | None = None,
    kl_weight: float = 0.0,
    check: bool | None = None,
    backend: Literal["torch", "triton"] | None = None,
) -> LossOutput:
    """Compute `token_loss` of ``hidden_TD @ weight_VD.T + bias`` without a [T, V] tensor.

    The cost is that of SFT: draws add no matrix product and no further pass over logits in memory.
    Gradients are computed in the forward pass, so the result can go backward once. The gradient of
    a low-precision weight is summed in float32. Under autocast the products have its dtype.

    Args:
        hidden_TD: the head's input, in the weight's dtype unless autocast is on.
        weight_VD: the head's weight; a plain tensor, or a DTensor as FSDP2 shards it (its gradient
            is then the mean over the ranks, like FSDP2's).
        target_T: the token that each position should predict, or IGNORE_INDEX.
        objective: which loss.
        weight_T: a number for each position by which its loss is multiplied, as for `token_loss`.
        bias: the head's bias.
        logit_scale: factor of the logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        softcap: the logits z become ``softcap * tanh(z / softcap)``, after the scale (Gemma).
        generator: provides the seed of the draws, one per call; None: torch's default generator.
        position_T: a number for each position, as for `token_loss`. The uniforms do not depend on
            batching; draws differ only if the products round differently.
        scored_S: indices of the positions that are scored, those whose target is not IGNORE_INDEX.
            Finding them takes a GPU's host a wait for all work before; a caller that knows them
            saves it.
        factor: of `loss_sum` and the gradients, but not of the other sums; such as 1 / the number
            of tokens of all ranks. Multiplying `loss_sum` itself has the same gradients, but reads
            and writes them once more.
        start_T: log-probability of each target before training, as for `token_loss`.
        base: hidden states and head of the base model, from which logits are computed chunk by
            chunk, for `kl_weight` and `LossOutput.kl_sum`. If its weight is `weight_VD` itself, as
            with adapters, it is read as such.
        kl_weight: factor of KL(base || p) in the loss of each scored position.
        check: whether bad targets and logits raise an error. If not, they make `loss_sum`,
            `nll_sum` and the gradients of all scored positions NaN. None: on the CPU only, since a
            GPU's host would have to wait.
        backend: None: triton on a CUDA device if it is installed, torch otherwise.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, range or device.
        FloatingPointError: the logits of a scored position hold NaN or inf, with `check`.
    """
    dtype = _products_dtype(hidden_TD, weight_VD)
    _check(objective, hidden_TD, target_T, generator, position_T)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap!r}: use a number > 0, or None")
    if bias is not None and bias.shape != weight_VD.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}: use [{len(weight_VD)}], one per token")
    _check_kl_weight(kl_weight, base is not None, "base, the base model's hidden states and head")
    loss_backend = _backend(backend, hidden_TD.device)
    head_weight = weight_VD
    weight_VD, bias = _unsharded(weight_VD), None if bias is None else _unsharded(bias)
    if not torch.is_grad_enabled():  # a Function's needs_input_grad ignores no_grad
        weight_VD, bias = weight_VD.detach(), None if bias is None else bias.detach()
    check = hidden_TD.device.type == "cpu" if check is None else check
    scored = _scored(target_T, len(weight_VD), position_T, scored_S, check=check)
    weight_S = _weight(weight_T, scored.row, target_T, check=check)
    start_S = _start(objective, start_T, scored.row, target_T, check=check)
    hidden_SD = hidden_TD[scored.row]
    if base is not None:
        _check_base(base, len(hidden_TD), len(weight_VD))
        own = weight_VD if base.weight_VD is head_weight else _unsharded(base.weight_VD)
        base_bias = None if base.bias is None else _unsharded(base.bias.detach()) * logit_scale
        base_SD = base.hidden_TD.detach()[scored.row]
        base_SD = base_SD if logit_scale == 1 else base_SD * logit_scale
        base = BaseStates(base_SD, own.detach().to(dtype), base_bias)
    if logit_scale != 1:
        hidden_SD, bias = hidden_SD * logit_scale, None if bias is None else bias * logit_scale
    seed = _seed(objective, generator)
    if factor is not None:
        precise = torch.promote_types(dtype, torch.float32)
        factor = _number(factor, hidden_TD.device, precise)
    loss_sum, figures = LinearLoss.apply(
        hidden_SD,
        weight_VD,
        bias,
        scored.target,
        scored.position,
        Settings(
            objective,
            seed,
            softcap,
            dtype,
            loss_backend,
            factor,
            weight_S,
            start_S,
            base,
            kl_weight,
        ),
    )
    return _output(loss_sum, figures, scored, objective)


def _weight(
    weight_T: Tensor | None, row_S: Tensor, target_T: Tensor, *, check: bool
) -> Tensor | None:
    """Return the weights of the scored positions, without a gradient."""
    if weight_T is None:
        return None
    _check_one_per_row("weight", weight_T, target_T)
    weight_S = weight_T.detach()[row_S]
    if check and not (finite_S := weight_S.isfinite()).all():
        row = int(row_S[~finite_S][0])
        raise ValueError(f"weight {float(weight_T[row])} in row {row}: use finite numbers")
    return weight_S


def _start(
    objective: Objective, start_T: Tensor | None, row_S: Tensor, target_T: Tensor, *, check: bool
) -> Tensor | None:
    """Return the start's log-probabilities of the scored positions, if the objective needs them."""
    if not objective.needs_start:
        return None
    if start_T is None:
        raise ValueError(
            f"objective {objective.name!r} needs start_T, the log-probability of each target under "
            "the model that training started from: give it, or use another objective"
        )
    _check_one_per_row("start", start_T, target_T)
    start_S = start_T.detach()[row_S]
    if check and (bad_S := ~((start_S <= 0) & start_S.isfinite())).any():
        row = int(row_S[bad_S][0])
        raise ValueError(
            f"start {float(start_T[row])} in row {row}: use log-probabilities, finite and at most 0"
        )
    return start_S


def _check_one_per_row(name: str, value_T: Tensor, target_T: Tensor) -> None:
    if value_T.shape != target_T.shape or not value_T.is_floating_point():
        raise ValueError(
            f"{name} is {value_T.dtype} {tuple(value_T.shape)}: use floats, [{len(target_T)}], one "
            "per row"
        )


def _base_logits(base_TV: Tensor | None, logits_TV: Tensor, row_S: Tensor) -> Tensor | None:
    if base_TV is None:
        return None
    if base_TV.shape != logits_TV.shape or not base_TV.is_floating_point():
        raise ValueError(
            f"base logits are {base_TV.dtype} {tuple(base_TV.shape)}: use floats, "
            f"{[*logits_TV.shape]}, as the logits"
        )
    return base_TV.detach()[row_S]


def _check_base(base: BaseStates, rows: int, vocabulary: int) -> None:
    hidden, weight = tuple(base.hidden_TD.shape), tuple(base.weight_VD.shape)
    if len(hidden) != 2 or hidden[0] != rows or weight != (vocabulary, hidden[1]):
        raise ValueError(
            f"base hidden {hidden} and weight {weight}: use [{rows}, D] and [{vocabulary}, D] with "
            "the same D"
        )
    if base.bias is not None and base.bias.shape != (vocabulary,):
        raise ValueError(f"base bias is {tuple(base.bias.shape)}: use [{vocabulary}]")


def _check_kl_weight(kl_weight: float, has_base: bool, needed: str) -> None:
    if not 0 <= kl_weight < math.inf:
        raise ValueError(f"kl_weight is {kl_weight!r}: use a number >= 0")
    if kl_weight and not has_base:
        raise ValueError(f"kl_weight is {kl_weight!r}, but nothing to compare with: give {needed}")


def _number(value: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a 0-dimensional tensor; a float gets to a GPU without a wait."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(f"factor is {tuple(value.shape)}: use a number")
        return value.detach().to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


class _Scored(NamedTuple):
    """The scored positions: their rows, targets and numbers, [S].

    If targets are not checked, those that are no token are replaced by one and marked in `bad`.
    """

    row: Tensor
    target: Tensor
    position: Tensor
    bad: Tensor | None


def _scored(
    target_T: Tensor,
    vocabulary: int,
    position_T: Tensor | None,
    scored_S: Tensor | None = None,
    *,
    check: bool = True,
) -> _Scored:
    """Select the scored positions, whose indices are `scored_S` if that is known."""
    if scored_S is None:
        scored_S = (target_T != IGNORE_INDEX).nonzero().squeeze(1)
    elif scored_S.dtype != torch.int64 or scored_S.ndim != 1:
        raise ValueError(f"scored is {scored_S.dtype} {tuple(scored_S.shape)}: use int64, [S]")
    target_S = target_T[scored_S]
    bad_S = (target_S < 0) | (target_S >= vocabulary)
    if check and bad_S.any():
        row = int(scored_S[bad_S][0])
        raise ValueError(
            f"target {int(target_T[row])} in row {row}: use 0 to {vocabulary - 1} or {IGNORE_INDEX}"
        )
    position_S = scored_S if position_T is None else position_T[scored_S]
    if check:
        return _Scored(scored_S, target_S, position_S, None)
    return _Scored(scored_S, target_S.clamp(0, vocabulary - 1), position_S, bad_S)


def _seed(objective: Objective, generator: torch.Generator | None) -> int:
    """Return the seed of the draws; only objectives that draw advance the generator."""
    return draw_seed(generator) if objective.draws_hits or objective.draws_misses else 0


def _output(loss_sum: Tensor, figures: Tensor, scored: _Scored, objective: Objective) -> LossOutput:
    """Return the sums of the positions' figures [F, S]."""
    bad_S = ~(figures[1] < torch.finfo(torch.float32).max)  # NaN, or a target whose logit is -inf
    if len(figures) > FIGURES:
        bad_S |= ~(figures[FIGURES] < torch.finfo(torch.float32).max)
    loss_sum = loss_sum.float()
    _, nll_sum, hit_sum, entropy_sum, _, *kl_sum = figures.sum(1).float()
    token_sums, gradient_sums = sums_by_bucket(figures[1], figures[4])
    if scored.bad is not None:
        one = torch.ones((), device=loss_sum.device)
        one_or_nan = one.masked_fill((bad_S | scored.bad).any(), torch.nan)
        loss_sum, nll_sum = loss_sum * one_or_nan, nll_sum * one_or_nan
    elif bad_S.any():
        row = int(scored.row[bad_S][0])
        raise FloatingPointError(
            f"the logits of row {row}{' or its base' if kl_sum else ''} hold NaN or inf: check its "
            "input"
        )
    num_tokens = torch.full((), len(scored.row), device=loss_sum.device)
    beta = objective.mismatch_reward
    return LossOutput(
        loss_sum=loss_sum,
        num_tokens=num_tokens,
        nll_sum=nll_sum,
        reward_sum=objective.reward_scale * (hit_sum + beta * (num_tokens - hit_sum)),
        hit_sum=hit_sum,
        entropy_sum=entropy_sum,
        token_sums=token_sums,
        gradient_sums=gradient_sums.float(),
        kl_sum=kl_sum[0] if kl_sum else None,
    )


def _backend(backend: str | None, device: torch.device) -> Backend:
    if backend not in (None, "torch", "triton"):
        raise ValueError(f"backend {backend!r}: use 'torch', 'triton' or None")
    triton = kernels.available(device)
    if backend == "triton" and not triton:
        raise ValueError(f"backend 'triton' can't run on {device}: use 'torch', or install triton")
    if backend == "triton" or (backend is None and triton and device.type == "cuda"):
        from otr.loss.kernels.rows import loss_and_gradient_ as triton_backend  # triton is optional

        return triton_backend
    return loss_and_gradient_


def _unsharded(weight_VD: Tensor) -> Tensor:
    """Gather a weight that FSDP2 shards over the ranks; return a plain tensor as it is."""
    mesh = getattr(weight_VD, "device_mesh", None)  # of a DTensor, whose class is slow to import
    if mesh is None:
        return weight_VD
    from torch.distributed.tensor import DTensor, Partial

    return cast(DTensor, weight_VD).full_tensor(grad_placements=[Partial("avg")] * mesh.ndim)


def _products_dtype(hidden_TD: Tensor, weight_VD: Tensor) -> torch.dtype:
    if hidden_TD.ndim != 2 or weight_VD.ndim != 2 or hidden_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)} and weight {tuple(weight_VD.shape)}: "
            "use [T, D] and [V, D] with the same D"
        )
    if torch.is_autocast_enabled(hidden_TD.device.type):
        return torch.get_autocast_dtype(hidden_TD.device.type)
    if hidden_TD.dtype != weight_VD.dtype:
        raise TypeError(
            f"hidden is {hidden_TD.dtype}, weight {weight_VD.dtype}: use one dtype, or autocast"
        )
    return weight_VD.dtype


def _check(
    objective: Objective,
    rows: Tensor,
    target_T: Tensor,
    generator: torch.Generator | None,
    position_T: Tensor | None,
) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"objective is {objective!r}: use an otr.Objective")
    if rows.ndim != 2 or not rows.is_floating_point():
        raise TypeError(f"logits or hidden is {rows.dtype} {tuple(rows.shape)}: use a float matrix")
    for name, vector in (("target", target_T), ("position", position_T)):
        if vector is not None and vector.dtype != torch.int64:
            raise TypeError(f"{name} is {vector.dtype}: use int64")
        if vector is not None and vector.shape != rows.shape[:1]:
            raise ValueError(f"{name} is {tuple(vector.shape)}: use [{len(rows)}], one per row")
    if generator is not None and generator.device.type not in ("cpu", rows.device.type):
        raise ValueError(f"generator is on {generator.device}: use the CPU or {rows.device}")
