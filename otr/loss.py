"""The one-token rollout loss and its neighbours, as pure functions.

In: logits (or hidden states and the head's weight) and target tokens, one row a predicted token.
Out: a `LossOutput` of sums over the scored rows; the caller divides by the global token count.

Shapes: T rows, V vocabulary, D width, K draws. A row whose target is `IGNORE_INDEX` is not scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from otr.draws import draw_seed, uniforms

IGNORE_INDEX = -100
_CHUNK_BYTES = 64 * 2**20  # float32 logits that one chunk of `linear_token_loss` may hold


@dataclass(frozen=True)
class Objective:
    """What a token is trained towards.

    With p = softmax(z), q = softmax(z / kappa) held constant, target y and K draws a_k from q:

    - ``sft``: -log p(y), gradient p - e_y.
    - ``dft``: -p(y) log p(y) with p(y) held constant, gradient p(y) (p - e_y); arXiv:2508.05629.
    - ``otr``: -(1/K) sum_k R(a_k) log p(a_k), R = scale * (1 if a == y else beta);
      arXiv:2509.26313. Its expectation over the draws (``estimator="expected"``) has the gradient
      scale * [(1 - beta) q(y) (p - e_y) + beta (p - q)].

    At kappa = 1 the expectation is DFT times scale * (1 - beta): there K sets only the variance and
    beta only the scale.

    Raises:
        ValueError: a field is outside its range.
    """

    name: Literal["otr", "sft", "dft"] = "otr"
    num_samples: int = 256
    """K, draws a token."""
    mismatch_reward: float = -0.1
    """beta, the reward of a draw that is not the target."""
    reward_scale: float = 1.0
    temperature: float = 1.3
    """kappa, the temperature of the distribution that is drawn from."""
    estimator: Literal["sampled", "expected"] = "sampled"

    def __post_init__(self) -> None:
        if self.name not in ("otr", "sft", "dft"):
            raise ValueError(f"objective name {self.name!r}: use 'otr', 'sft' or 'dft'")
        if self.estimator not in ("sampled", "expected"):
            raise ValueError(f"estimator {self.estimator!r}: use 'sampled' or 'expected'")
        if type(self.num_samples) is not int or self.num_samples < 1:
            raise ValueError(f"num_samples (K) is {self.num_samples!r}: use an integer >= 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature (kappa) is {self.temperature!r}: use a number > 0")
        for field in ("mismatch_reward", "reward_scale"):
            value = getattr(self, field)
            if not abs(value) < float("inf"):
                raise ValueError(f"{field} is {value!r}: use a finite number")


@dataclass(frozen=True)
class LossOutput:
    """Sums over the scored tokens; all 0-d float32 but `num_tokens` (0-d int64).

    Only `loss_sum` has a gradient. `hit_sum` and `reward_sum` are those of the draws; where nothing
    is drawn (sft, dft, expected) they are the expectations under q.
    """

    loss_sum: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    nll_sum: Float[Tensor, ""]
    reward_sum: Float[Tensor, ""]
    hit_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]

    def __add__(self, other: "LossOutput") -> "LossOutput":
        return LossOutput(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )


def token_loss(
    logits_TV: Float[Tensor, "T V"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
) -> LossOutput:
    """The loss of `objective` on given logits: the plain version that the others are held against.

    Args:
        logits_TV: any floating dtype; the arithmetic is float32 (float64 stays float64).
        target_T: the token each row should predict, or IGNORE_INDEX.
        objective: which loss.
        generator: gives the seed of the draws, one a call; None: torch's default generator.
        position_T: counter of each row (default 0..T-1). A row's draws depend on the seed and its
            counter alone, so they do not change with how tokens are batched.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, range or device.
    """
    _check(logits_TV, target_T, logits_TV.shape[-1], position_T, generator)
    position_T, seed = _counters(target_T, objective, generator, position_T)
    kept = target_T != IGNORE_INDEX
    return _loss(logits_TV[kept], target_T[kept], objective, seed, position_T[kept])


def linear_token_loss(  # noqa: PLR0913 - the public signature of the design
    hidden_TD: Float[Tensor, "T D"],
    weight_VD: Float[Tensor, "V D"],
    target_T: Int[Tensor, " T"],
    objective: Objective,
    *,
    bias: Float[Tensor, " V"] | None = None,
    generator: torch.Generator | None = None,
    position_T: Int[Tensor, " T"] | None = None,
) -> LossOutput:
    """`token_loss` of ``hidden_TD @ weight_VD.T + bias`` without ever holding a [T, V] tensor.

    The scored rows go through in chunks whose logits are computed again in the backward pass.
    Arguments and errors as for `token_loss`.
    """
    if hidden_TD.ndim != 2 or weight_VD.ndim != 2 or hidden_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden_TD.shape)} and weight {tuple(weight_VD.shape)}: "
            "use [T, D] and [V, D] with the same D"
        )
    _check(hidden_TD, target_T, len(weight_VD), position_T, generator)
    position_T, seed = _counters(target_T, objective, generator, position_T)
    kept = target_T != IGNORE_INDEX

    def chunk_loss(hidden_CD: Tensor, target_C: Tensor, position_C: Tensor) -> LossOutput:
        logits_CV = torch.nn.functional.linear(hidden_CD, weight_VD, bias)
        return _loss(logits_CV, target_C, objective, seed, position_C)

    total = None
    for chunk in _chunks(hidden_TD[kept], target_T[kept], position_T[kept], len(weight_VD)):
        output = checkpoint(chunk_loss, *chunk, use_reentrant=False, preserve_rng_state=False)
        total = output if total is None else total + output
    assert total is not None  # there is always one chunk, if an empty one
    return total


def _loss(
    logits_TV: Tensor, target_T: Tensor, objective: Objective, seed: int, position_T: Tensor
) -> LossOutput:
    """The mathematics; every row is scored."""
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    logp_TV = torch.log_softmax(logits_TV, dim=-1)
    logp_T = logp_TV.gather(1, target_T[:, None]).squeeze(1)
    with torch.no_grad():
        p_TV = logp_TV.exp()
        kappa = objective.temperature
        q_TV = p_TV if kappa == 1 else torch.softmax(logits_TV / kappa, dim=-1)
        q_T = q_TV.gather(1, target_T[:, None]).squeeze(1)
    beta, scale, hit_T = objective.mismatch_reward, objective.reward_scale, q_T

    if objective.name == "sft":
        loss_T = -logp_T
    elif objective.name == "dft":
        loss_T = -logp_T.detach().exp() * logp_T
    elif objective.estimator == "expected":
        all_T = (q_TV * logp_TV.masked_fill(q_TV == 0, 0)).sum(-1)
        loss_T = -scale * ((1 - beta) * q_T * logp_T + beta * all_T)
    else:
        hit_TK = uniforms(seed, position_T, objective.num_samples, word=0) < q_T[:, None]
        hit_T = hit_TK.to(logp_T.dtype).mean(-1)
        loss_T = -scale * hit_T * logp_T
        if beta != 0:
            miss_TK = _draw_misses(q_TV, target_T, seed, position_T, objective.num_samples)
            miss_logp_TK = logp_TV.gather(1, miss_TK).masked_fill(hit_TK, 0)
            loss_T = loss_T - scale * beta * miss_logp_TK.mean(-1)

    with torch.no_grad():
        reward_T = scale * (hit_T + beta * (1 - hit_T))
        entropy_T = torch.special.entr(p_TV).sum(-1)
    return LossOutput(
        loss_sum=loss_T.sum().float(),
        num_tokens=torch.tensor(len(target_T), device=target_T.device),
        nll_sum=-logp_T.detach().sum().float(),
        reward_sum=reward_T.sum().float(),
        hit_sum=hit_T.sum().float(),
        entropy_sum=entropy_T.sum().float(),
    )


@torch.no_grad()
def _draw_misses(
    q_TV: Tensor, target_T: Tensor, seed: int, position_T: Tensor, num_samples: int
) -> Int[Tensor, "T K"]:
    """K draws a row from q without the target, by inverting its cumulative distribution."""
    cdf_TV = q_TV.scatter(1, target_T[:, None], 0).cumsum(-1)
    total_T1 = cdf_TV[:, -1:]
    point_TK = uniforms(seed, position_T, num_samples, word=1).to(cdf_TV.dtype) * total_T1
    below_T1 = torch.nextafter(total_T1, torch.zeros_like(total_T1))  # rounding must not reach 1
    index_TK = torch.searchsorted(cdf_TV, torch.minimum(point_TK, below_T1), right=True)
    return index_TK.clamp_(max=q_TV.shape[1] - 1)


def _chunks(
    hidden_TD: Tensor, target_T: Tensor, position_T: Tensor, vocabulary: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rows = max(1, _CHUNK_BYTES // (4 * vocabulary))
    yield from zip(hidden_TD.split(rows), target_T.split(rows), position_T.split(rows), strict=True)


def _counters(
    target_T: Tensor,
    objective: Objective,
    generator: torch.Generator | None,
    position_T: Tensor | None,
) -> tuple[Tensor, int]:
    if position_T is None:
        position_T = torch.arange(len(target_T), device=target_T.device)
    draws = objective.name == "otr" and objective.estimator == "sampled"
    return position_T, draw_seed(generator) if draws else 0


def _check(
    rows: Tensor,
    target_T: Tensor,
    vocabulary: int,
    position_T: Tensor | None,
    generator: torch.Generator | None,
) -> None:
    if rows.ndim != 2 or not rows.is_floating_point():
        raise TypeError(f"logits or hidden is {rows.dtype} {tuple(rows.shape)}: use a float matrix")
    if target_T.dtype != torch.int64:
        raise TypeError(f"target is {target_T.dtype}: use int64")
    for name, vector in (("target", target_T), ("position", position_T)):
        if vector is not None and vector.shape != rows.shape[:1]:
            raise ValueError(f"{name} is {tuple(vector.shape)}: use [{len(rows)}], one a row")
    bad = (target_T != IGNORE_INDEX) & ((target_T < 0) | (target_T >= vocabulary))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"target {int(target_T[row])} in row {row}: use 0 to {vocabulary - 1} or {IGNORE_INDEX}"
        )
    if generator is not None and generator.device.type not in ("cpu", rows.device.type):
        raise ValueError(f"generator is on {generator.device}: use the CPU or {rows.device}")
