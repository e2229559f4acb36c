"""The public losses: `token_loss` on logits, `linear_token_loss` on hidden states.

Both are pure functions. They return sums over the scored tokens; the caller divides by the number
of tokens over all ranks and micro-batches.

Shapes: T positions, one predicted token each (a position with target IGNORE_INDEX is not scored),
V vocabulary, D width, K draws per token.
"""

from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss import kernels
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
from otr.loss.fused import Backend, LinearLoss, Settings
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective
from otr.loss.rows import loss_and_gradient_


def token_loss(
    logits_TV: Float[Tensor, "T V"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
) -> LossOutput:
    """Compute an objective's loss on logits: the reference that faster versions are tested against.

    Args:
        logits_TV: any floating dtype; the arithmetic is float32 (float64 stays float64).
        target_T: the token that each position should predict, or IGNORE_INDEX.
        objective: which loss.
        generator: provides the seed of the draws, one per call; None: torch's default generator.
        position_T: a number for each position (default 0..T-1). A position's draws depend on the
            seed and this number only, however the tokens are batched.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, range or device.
        FloatingPointError: the logits of a scored position hold NaN or inf.
    """
    _check(objective, logits_TV, target_T, logits_TV.shape[-1], generator, position_T)
    scored_T, position_T, seed = _scored(target_T, objective, generator, position_T)
    figures = _plain(logits_TV[scored_T], target_T[scored_T], objective, seed, position_T[scored_T])
    return _output(figures[0].sum(), figures.detach(), scored_T, objective)


def _plain(
    logits_TV: Tensor, target_T: Tensor, objective: Objective, seed: int, position_T: Tensor
) -> Tensor:
    """Return loss, NLL, hit share and entropy of each position, all of them scored: [4, T]."""
    logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    target_T1, num_samples = target_T[:, None], objective.num_samples
    logp_TV = torch.log_softmax(logits_TV, dim=-1)
    logp_T = logp_TV.gather(1, target_T1).squeeze(1)
    with torch.no_grad():
        q_TV = torch.softmax(logits_TV / objective.kappa, dim=-1)
        hit_T = q_T = q_TV.gather(1, target_T1).squeeze(1)
        low_T, high_T = row_keys(seed, position_T)
        keys = RowKeys(low_T[:, None], high_T[:, None])
        draw_K = torch.arange(num_samples, device=q_T.device)
        if objective.draws_hits:
            hit_TK = uniforms(keys, draw_K, word=HIT) < q_T[:, None]
            hit_T = hit_TK.to(q_T.dtype).mean(-1)
        if objective.draws_misses:
            words = (uniforms(keys, draw_K, word=word) for word in (WHICH_BLOCK, WHICH_ENTRY))
            miss_TK = draw_each(q_TV.scatter(1, target_T1, 0), *words)
    beta, scale = objective.mismatch_reward, objective.reward_scale

    if objective.name == "sft":
        loss_T = -logp_T
    elif objective.name == "dft":
        loss_T = -logp_T.detach().exp() * logp_T
    elif objective.estimator == "expected":
        all_T = (q_TV * logp_TV.masked_fill(q_TV == 0, 0)).sum(-1)
        loss_T = -scale * ((1 - beta) * q_T * logp_T + beta * all_T)
    else:
        loss_T = -scale * hit_T * logp_T.masked_fill(hit_T == 0, 0)
        if objective.draws_misses:
            miss_logp_TK = logp_TV.gather(1, miss_TK)
            if objective.draws_hits:
                miss_logp_TK = miss_logp_TK.masked_fill(hit_TK, 0)
            else:
                miss_logp_TK = miss_logp_TK.masked_fill((q_T == 1)[:, None], 0)
                miss_logp_TK = (1 - q_T)[:, None] * miss_logp_TK
            loss_T = loss_T - scale * beta * miss_logp_TK.mean(-1)
    entropy_T = torch.special.entr(logp_TV.detach().exp()).sum(-1)
    return torch.stack([loss_T, -logp_T, hit_T, entropy_T])


@torch.compiler.disable  # its gradients are computed by hand, which a compiled caller skips
def linear_token_loss(  # noqa: PLR0913 - the public signature of the design
    hidden_TD: Float[Tensor, "T D"],
    weight_VD: Float[Tensor, "V D"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    bias: Float[Tensor, " V"] | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
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
        bias: the head's bias.
        logit_scale: factor of the logits (Cohere's logit_scale, 1 / Granite's logits_scaling).
        softcap: the logits z become ``softcap * tanh(z / softcap)``, after the scale (Gemma).
        generator: provides the seed of the draws, one per call; None: torch's default generator.
        position_T: a number for each position, as for `token_loss`. The uniforms do not depend on
            batching; draws differ only if the products round differently.
        backend: None: triton on a CUDA device if it is installed, torch otherwise.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, range or device.
        FloatingPointError: the logits of a scored position hold NaN or inf.
    """
    dtype = _products_dtype(hidden_TD, weight_VD)
    _check(objective, hidden_TD, target_T, len(weight_VD), generator, position_T)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap!r}: use a number > 0, or None")
    if bias is not None and bias.shape != weight_VD.shape[:1]:
        raise ValueError(f"bias is {tuple(bias.shape)}: use [{len(weight_VD)}], one per token")
    loss_backend = _backend(backend, hidden_TD.device)
    weight_VD, bias = _unsharded(weight_VD), None if bias is None else _unsharded(bias)
    if not torch.is_grad_enabled():  # a Function's needs_input_grad ignores no_grad
        weight_VD, bias = weight_VD.detach(), None if bias is None else bias.detach()
    scored_T, position_T, seed = _scored(target_T, objective, generator, position_T)
    hidden_TD = hidden_TD[scored_T]
    if logit_scale != 1:
        hidden_TD, bias = hidden_TD * logit_scale, None if bias is None else bias * logit_scale
    loss_sum, figures = LinearLoss.apply(
        hidden_TD,
        weight_VD,
        bias,
        target_T[scored_T],
        position_T[scored_T],
        Settings(objective, seed, softcap, dtype, loss_backend),
    )
    return _output(loss_sum, figures, scored_T, objective)


def _output(
    loss_sum: Tensor, figures: Tensor, scored_T: Tensor, objective: Objective
) -> LossOutput:
    """Sum the positions' loss, NLL, hit share and entropy [4, T]."""
    bad_T = ~(figures[1] < torch.finfo(torch.float32).max)  # NaN, or a target whose logit is -inf
    if bad_T.any():
        row = int(scored_T[bad_T][0])
        raise FloatingPointError(f"the logits of row {row} hold NaN or inf: check its input")
    _, nll_sum, hit_sum, entropy_sum = figures.sum(1).float()
    num_tokens = torch.tensor(len(scored_T), device=scored_T.device)
    beta = objective.mismatch_reward
    return LossOutput(
        loss_sum=loss_sum.float(),
        num_tokens=num_tokens,
        nll_sum=nll_sum,
        reward_sum=objective.reward_scale * (hit_sum + beta * (num_tokens - hit_sum)),
        hit_sum=hit_sum,
        entropy_sum=entropy_sum,
    )


def _scored(
    target_T: Tensor,
    objective: Objective,
    generator: torch.Generator | None,
    position_T: Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """Return indices of the scored positions, the numbers of all positions, the draws' seed."""
    if position_T is None:
        position_T = torch.arange(len(target_T), device=target_T.device)
    draws = objective.draws_hits or objective.draws_misses
    seed = draw_seed(generator) if draws else 0
    return (target_T != IGNORE_INDEX).nonzero().squeeze(1), position_T, seed


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
    vocabulary: int,
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
    bad = (target_T != IGNORE_INDEX) & ((target_T < 0) | (target_T >= vocabulary))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target {int(target_T[row])} in row {row}: use 0 to {vocabulary - 1} or {IGNORE_INDEX}"
        )
    if generator is not None and generator.device.type not in ("cpu", rows.device.type):
        raise ValueError(f"generator is on {generator.device}: use the CPU or {rows.device}")
