"""Cross-entropy weighted by a power of the target's probability."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Power(Objective):
    """The loss (1 - p(y)^a) / a, one of the functions of the probability in arXiv:2510.00526.

    Its gradient is SFT's times p(y)^a, so a = 1 is DFT's and a = 0 SFT's. What is reported as the
    loss is -p(y)^a log p(y), as for all weighted objectives. The paper's equations were not read.
    """

    name: str = "power"
    exponent: float = 0.5
    """The power of the target's probability that weights its gradient: 0 is SFT, 1 is DFT."""

    label: ClassVar[str] = "power"
    arxiv: ClassVar[str] = "2510.00526"
    loss: ClassVar[str] = "−p(y)^a log p(y), the factor p(y)^a without gradient"
    gradient: ClassVar[str] = "p(y)^a (p − e_y)"
    meaning: ClassVar[str] = (
        "Between SFT and DFT for a from 0 to 1; above 1, learns only what is almost certain."
    )
    helps: ClassVar[str] = (
        "With a = 1 or more where the base model is strong, with a near 0 where it is weak "
        "(arXiv:2510.00526, abstract: −p and −p^10)."
    )
    hurts: ClassVar[str] = "In between: no single exponent wins there (arXiv:2510.00526, abstract)."
    example: ClassVar[Example] = Example(0.6931471806, -0.375)

    def __post_init__(self) -> None:
        self.require(0 <= self.exponent < float("inf"), "exponent", "a number >= 0")

    def weight(self, xp, p, log_p, entropy):
        """Return p^a."""
        return xp.exp(self.exponent * log_p)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#7b61c4", "#a896e6", "<")
