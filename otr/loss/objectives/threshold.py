"""Cross-entropy of the tokens that the model finds likely enough."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Threshold(Objective):
    """Cross-entropy where the target's probability reaches a threshold (arXiv:2510.00526).

    The paper's equations were not read.
    """

    name: str = "threshold"
    threshold: float = 0.1
    """The least probability of a target that is learned."""

    label: ClassVar[str] = "threshold"
    arxiv: ClassVar[str] = "2510.00526"
    loss: ClassVar[str] = "−log p(y) if p(y) ≥ t, else 0"
    gradient: ClassVar[str] = "1[p(y) ≥ t] (p − e_y)"
    meaning: ClassVar[str] = (
        "Learns all targets that are likely enough equally, and leaves out the others."
    )
    helps: ClassVar[str] = (
        "Where the base model is strong and unlikely targets are noise (arXiv:2510.00526, "
        "abstract: thresholded variants)."
    )
    hurts: ClassVar[str] = (
        "Where the base model is weak; targets below t are never learned, however often they "
        "occur (follows from the weight)."
    )
    example: ClassVar[Example] = Example(1.3862943611, -0.75)

    def __post_init__(self) -> None:
        self.require(0 <= self.threshold <= 1, "threshold", "a number from 0 to 1")

    def weight(self, xp, p, log_p, entropy):
        """Return 1 for likely targets and 0 for others."""
        return xp.where(p >= self.threshold, 1.0, 0.0 * p)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#a0522d", "#d08a63", ">")
