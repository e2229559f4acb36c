"""Entropy-adaptive fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Eaft(Objective):
    """Cross-entropy times the entropy of the position, held constant (arXiv:2601.02151).

    The paper's gate is the entropy of the 20 most likely tokens divided by log 20. Here it is that
    of all tokens, which is known already, divided by log 20 and at most 1. The abstract and public
    implementations were read, not the equations.
    """

    name: str = "eaft"

    label: ClassVar[str] = "EAFT"
    arxiv: ClassVar[str] = "2601.02151"
    loss: ClassVar[str] = "−w log p(y), w = min(H / log 20, 1) without gradient"
    gradient: ClassVar[str] = "w (p − e_y)"
    meaning: ClassVar[str] = (
        "Learns where the model is uncertain; leaves it alone where it is sure, right or wrong."
    )
    helps: ClassVar[str] = (
        "Where general skills must stay: as good as SFT on the task, with less forgetting, on"
        " Qwen and GLM of 4B to 32B (arXiv:2601.02151, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where the model must give up what it is sure of (follows from the weight)."
    )
    example: ClassVar[Example] = Example(0.2602242019, -0.1407840621)

    def weight(self, xp, p, log_p, entropy):
        """Return the entropy over log 20, at most 1."""
        return xp.minimum(entropy / 2.995732273553991, 0.0 * p + 1.0)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#007c91", "#4db8c9", "H")
