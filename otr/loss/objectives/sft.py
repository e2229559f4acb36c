"""Supervised fine-tuning: cross-entropy, with label smoothing and z-loss."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import UNIFORM, Example, Objective, Style


@dataclass(frozen=True)
class Sft(Objective):
    """Cross-entropy.

    Label smoothing (arXiv:1512.00567, section 7) gives a share of the target to all tokens equally,
    masked ones left out. z-loss (arXiv:2204.02311, section 5) adds z_loss log(Z)^2, where Z is the
    sum of the exponentials of the logits.
    """

    name: str = "sft"
    label_smoothing: float = 0.0
    """Share of the target that all tokens of the vocabulary get equally. 0: none."""
    z_loss: float = 0.0
    """Weight of the square of the logits' log-sum-exp, which keeps logits from drifting; 1e-4 is
    common. 0: none."""

    label: ClassVar[str] = "SFT"
    loss: ClassVar[str] = "−log p(y)"
    gradient: ClassVar[str] = "p − e_y"
    meaning: ClassVar[str] = "Raises each target equally, however unlikely the model finds it."
    helps: ClassVar[str] = (
        "Where the base model knows little of the task: there NLL beats the others "
        "(arXiv:2510.00526, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where the model is sure of something else: such targets make it forget general "
        "skills (arXiv:2601.02151, abstract)."
    )
    example: ClassVar[Example] = Example(1.3862943611, -0.75)

    def __post_init__(self) -> None:
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "a number from 0 to below 1")
        self.require(0 <= self.z_loss < float("inf"), "z_loss", "a number >= 0")

    def coefficients(self, xp, p, q, share, entropy, lse):
        """Return P, Q, Y, M and the penalty; q is uniform."""
        smooth = self.label_smoothing
        if self.z_loss == 0:
            return 1.0, smooth, 1 - smooth, 0.0, 0.0
        else:
            penalty = self.z_loss * lse * lse
            return 1 + 2 * self.z_loss * lse, smooth, 1 - smooth, 0.0, penalty

    @property
    def kappa(self) -> float:
        """Temperature of q."""
        return UNIFORM if self.label_smoothing else 1.0

    @property
    def uses_q(self) -> bool:
        """Whether labels are smoothed."""
        return self.label_smoothing != 0

    @property
    def dense_q(self) -> bool:
        """Whether labels are smoothed."""
        return self.label_smoothing != 0

    @property
    def has_penalty(self) -> bool:
        """Whether there is a z-loss."""
        return self.z_loss != 0

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#d55e00", "#f08a3c", "s")
