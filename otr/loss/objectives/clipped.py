"""Cross-entropy with the weight of DFT for unlikely targets only."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Clipped(Objective):
    """Cross-entropy times the target's probability where this is small, held constant.

    It bounds the factor 1 / p(y) of SFT's gradient of p(y), as a part of GFT (arXiv:2604.14258)
    does, of which the abstract was read, not the equations; the default is ours.
    """

    name: str = "clipped"
    threshold: float = 0.1
    """The probability of a target from which on it is learned with full weight."""

    label: ClassVar[str] = "clipped"
    arxiv: ClassVar[str] = "2604.14258"
    loss: ClassVar[str] = "−w log p(y), w = p(y) if p(y) < t, else 1, without gradient"
    gradient: ClassVar[str] = "w (p − e_y)"
    meaning: ClassVar[str] = (
        "Learns as SFT does, but hardly targets that the model finds very unlikely."
    )
    helps: ClassVar[str] = (
        "Where very unlikely targets make SFT unstable: bounds the weight 1 / p(y) that they "
        "have in the gradient of p(y) (arXiv:2604.14258, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where just these targets are what is to be learned (follows from the weight). The "
        "paper has more parts than this one."
    )
    example: ClassVar[Example] = Example(0.3465735903, -0.1875, {"threshold": 0.5})

    def __post_init__(self) -> None:
        self.require(0 <= self.threshold <= 1, "threshold", "a number from 0 to 1")

    def weight(self, xp, p, log_p, entropy):
        """Return p where it is below the threshold, else 1."""
        return xp.where(p < self.threshold, p, 1.0)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#4f7f1f", "#93c05b", "d")
