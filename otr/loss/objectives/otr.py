"""One-token rollout."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from otr.loss.objective import Example, Objective, Style

_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Otr(Objective):
    """One-token rollout (arXiv:2509.26313).

    The loss is -(1/K) sum_k R(a_k) log p(a_k) with R = scale * (1 if a == y else beta). Its
    expectation over the draws has the gradient scale * [(1 - beta) q(y) (p - e_y) + beta (p - q)].
    At kappa = 1 this is DFT's times scale * (1 - beta): K then changes only the variance, and beta
    only the scale.
    """

    name: str = "otr"
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

    label: ClassVar[str] = "OTR"
    arxiv: ClassVar[str] = "2509.26313"
    loss: ClassVar[str] = "−(1/K) Σₖ R(aₖ) log p(aₖ)"
    gradient: ClassVar[str] = "in expectation scale · [(1 − β) q(y) (p − e_y) + β (p − q)]"
    meaning: ClassVar[str] = (
        "Learns what the model already finds likely; with β < 0 and κ > 1, sharpens p too."
    )
    helps: ClassVar[str] = (
        "Where the model half agrees with the data. The paper (abstract) reports better results "
        "than SFT on mathematics, code and reasoning; it was withdrawn from a conference."
    )
    hurts: ClassVar[str] = (
        "Where p(y) is near 0: nothing new is learned. At κ = 1 it is DFT. In our built-in sweep "
        "it is not better than SFT on the target."
    )
    example: ClassVar[Example] = Example(
        0.2386928131,
        -0.28125,
        {"mismatch_reward": -0.5, "temperature": 1.0, "estimator": "expected"},
    )
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "otr-expected": {"estimator": "expected"},
        "otr-k16": {"num_samples": 16},
        "otr-k256": {"num_samples": 256},
    }
    rolls_out: ClassVar[bool] = True

    def __post_init__(self) -> None:
        estimators = ("sampled", "half", "expected")
        self.require(self.estimator in estimators, "estimator", "'sampled', 'half' or 'expected'")
        whole = type(self.num_samples) is int and self.num_samples >= 1
        self.require(whole, "num_samples", "an integer >= 1")
        self.require(0 < self.temperature < float("inf"), "temperature", "a number > 0")
        for setting in ("mismatch_reward", "reward_scale"):
            self.require(abs(getattr(self, setting)) < float("inf"), setting, "a finite number")

    def coefficients(self, xp, p, q, share, entropy, lse):
        """Return P, Q, Y and M; every draw's reward has its share of P."""
        beta, scale = self.mismatch_reward, self.reward_scale
        reward = scale * (share + beta * (1 - share))
        if self.estimator == "expected":
            return reward, scale * beta, scale * (1 - beta) * share, 0.0, 0.0
        elif self.estimator == "sampled":
            return reward, 0.0, scale * share, scale * beta / self.num_samples, 0.0
        else:
            return reward, 0.0, scale * share, scale * beta / self.num_samples * (1 - q), 0.0

    @property
    def kappa(self) -> float:
        """Temperature of q."""
        return self.temperature

    @property
    def uses_q(self) -> bool:
        """Whether anything depends on q: always."""
        return True

    @property
    def dense_q(self) -> bool:
        """Whether the misses' part is computed in expectation."""
        return self.estimator == "expected" and self.mismatch_reward != 0

    @property
    def draws_hits(self) -> bool:
        """Whether the target's share of the K draws is drawn."""
        return self.estimator == "sampled"

    @property
    def draws_misses(self) -> bool:
        """Whether tokens other than the target are drawn."""
        return self.estimator != "expected" and self.mismatch_reward != 0

    @property
    def expectation(self) -> Objective:
        """The same with the estimator `expected`."""
        return self.changed(estimator="expected")

    @property
    def variant(self) -> str:
        """The estimator."""
        return self.estimator

    @property
    def style(self) -> Style | None:
        """Style in figures; sampled arms, of which there are many, take free ones."""
        return Style("#cc79a7", "#e29cc3", "^") if self.estimator == "expected" else None

    def forms(self) -> list[Objective]:
        """Return this objective with each estimator."""
        estimators = ("sampled", "half", "expected")
        return [self.changed(estimator=estimator) for estimator in estimators]

    def describe(self) -> str:
        """Return the settings that matter to the estimator, "OTR K 256, β -0.1, κ 1.3"."""
        num_samples = f"K{_SPACE}{self.num_samples}"
        parts = [
            {
                "sampled": f"OTR {num_samples}",
                "half": f"OTR {num_samples} for mismatches, matches in expectation",
                "expected": "OTR in expectation",
            }[self.estimator],
            f"β{_SPACE}{self.mismatch_reward:g}",
            f"κ{_SPACE}{self.temperature:g}",
        ]
        if self.reward_scale != 1:
            parts.append(f"reward scale{_SPACE}{self.reward_scale:g}")
        return ", ".join(parts)
