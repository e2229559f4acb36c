"""Cross-entropy of the tokens about which the model is undecided."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Chord(Objective):
    """Cross-entropy times p(y) (1 - p(y)), held constant: CHORD's weight (arXiv:2508.11408).

    CHORD's mixture with reinforcement learning is not part of it. The paper's equations were not
    read.
    """

    name: str = "chord"

    label: ClassVar[str] = "CHORD"
    arxiv: ClassVar[str] = "2508.11408"
    loss: ClassVar[str] = "−p(y) (1 − p(y)) log p(y), the factors without gradient"
    gradient: ClassVar[str] = "p(y) (1 − p(y)) (p − e_y)"
    meaning: ClassVar[str] = "Learns targets that are neither unlikely nor known already."
    helps: ClassVar[str] = (
        "Beside reinforcement learning, to which the paper adds it (arXiv:2508.11408, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where targets are unlikely or the model needs to become sure: neither is learned "
        "(follows from the weight)."
    )
    example: ClassVar[Example] = Example(0.2599301927, -0.140625)

    def weight(self, xp, p, log_p, entropy):
        """Return p (1 - p)."""
        return p * (1 - p)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#b03a6b", "#e07da6", "h")
