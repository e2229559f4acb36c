"""The training objective of a token, and the result of a loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

IGNORE_INDEX = -100
"""Target of a position that is not scored."""


@dataclass(frozen=True)
class Objective:
    """The training objective of a token.

    With p = softmax(z), q = softmax(z / kappa) held constant, target y and K draws a_k from q:

    - `sft`: -log p(y), gradient p - e_y.
    - `dft`: -p(y) log p(y) with p(y) held constant, gradient p(y) (p - e_y); arXiv:2508.05629.
    - `otr`: -(1/K) sum_k R(a_k) log p(a_k), R = scale * (1 if a == y else beta);
      arXiv:2509.26313. Its expectation over the draws (`estimator="expected"`) has the gradient
      scale * [(1 - beta) q(y) (p - e_y) + beta (p - q)].

    At kappa = 1 the expectation is DFT times scale * (1 - beta): K then changes only the variance,
    and beta only the scale.

    Raises:
        ValueError: a field is outside its range.
    """

    name: Literal["otr", "sft", "dft"] = "otr"
    """`otr`: one-token rollout. `sft`: supervised fine-tuning, cross-entropy. `dft`: dynamic
    fine-tuning, cross-entropy weighted by the target's probability. The other settings apply to
    `otr` only."""
    num_samples: int = 256
    """K, the number of tokens drawn per position."""
    mismatch_reward: float = -0.1
    """beta, the reward of a drawn token that is not the target; the target's reward is 1. Negative
    values push probability away from the drawn tokens."""
    reward_scale: float = 1.0
    """Factor of all rewards. AdamW normalizes gradients, so this changes little unless they are
    clipped."""
    temperature: float = 1.3
    """kappa, the temperature of the distribution q from which tokens are drawn; at 1, q is the
    model's own."""
    estimator: Literal["sampled", "half", "expected"] = "sampled"
    """How the loss of a token is computed. `sampled`: from K drawn tokens, as in the paper.
    `expected`: its expectation, without draws. `half`: the target's part in expectation, the rest
    from K draws among the other tokens; unbiased like `sampled`, with lower variance."""

    def __post_init__(self) -> None:
        if self.name not in ("otr", "sft", "dft"):
            raise ValueError(f"objective name {self.name!r}: use 'otr', 'sft' or 'dft'")
        if self.estimator not in ("sampled", "half", "expected"):
            raise ValueError(f"estimator {self.estimator!r}: use 'sampled', 'half' or 'expected'")
        if type(self.num_samples) is not int or self.num_samples < 1:
            raise ValueError(f"num_samples (K) is {self.num_samples!r}: use an integer >= 1")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature (kappa) is {self.temperature!r}: use a number > 0")
        for field in ("mismatch_reward", "reward_scale"):
            value = getattr(self, field)
            if not abs(value) < float("inf"):
                raise ValueError(f"{field} is {value!r}: use a finite number")

    @property
    def kappa(self) -> float:
        """Temperature of q; 1 if the objective does not use q (sft, dft)."""
        return self.temperature if self.name == "otr" else 1.0

    @property
    def draws_hits(self) -> bool:
        """Whether the target's share of the K draws is drawn, not computed in expectation."""
        return self.name == "otr" and self.estimator == "sampled"

    @property
    def draws_misses(self) -> bool:
        """Whether tokens other than the target are drawn."""
        return self.name == "otr" and self.estimator != "expected" and self.mismatch_reward != 0


@dataclass(frozen=True)
class LossOutput:
    """Sums over the scored tokens: 0-d float32 tensors, except `num_tokens` (0-d int64).

    Only `loss_sum` has a gradient. `hit_sum` (draws that equal the target, as a share of K) and
    `reward_sum` come from the draws; if hits are not drawn, they are expectations under q for otr,
    and under p for sft and dft. `entropy_sum` is p's entropy in nats.
    """

    loss_sum: Float[Tensor, ""]
    num_tokens: Int[Tensor, ""]
    nll_sum: Float[Tensor, ""]
    reward_sum: Float[Tensor, ""]
    hit_sum: Float[Tensor, ""]
    entropy_sum: Float[Tensor, ""]

    def __add__(self, other: LossOutput) -> LossOutput:
        return LossOutput(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )
