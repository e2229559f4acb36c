"""Dynamic fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Dft(Objective):
    """Cross-entropy times the target's probability, held constant (arXiv:2508.05629)."""

    name: str = "dft"

    label: ClassVar[str] = "DFT"
    arxiv: ClassVar[str] = "2508.05629"
    loss: ClassVar[str] = "−p(y) log p(y), the factor p(y) without gradient"
    gradient: ClassVar[str] = "p(y) (p − e_y)"
    meaning: ClassVar[str] = "Learns what the model already finds likely, hardly the rest."
    helps: ClassVar[str] = (
        "Where the base model is strong on the task (arXiv:2510.00526, abstract); introduced "
        "for mathematics and code (arXiv:2508.05629)."
    )
    hurts: ClassVar[str] = (
        "Where it is weak (arXiv:2510.00526). Below the base model in some published tables "
        "(arXiv:2601.02151, 2604.14258)."
    )
    example: ClassVar[Example] = Example(0.3465735903, -0.1875)

    def weight(self, xp, p, log_p, entropy):
        """Return the target's probability."""
        return p

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#009e73", "#2fc79a", "D")
