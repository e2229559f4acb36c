"""In-distribution fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Idft(Objective):
    """Cross-entropy times p(y)^g, held constant, g = exp(-(log p(y) + H) / b) (arXiv:2602.12222).

    g is kept within 0.1 and 2. log p(y) + H is how much likelier the target is than the model's own
    tokens are on average. The paper's equations were not read. The authors' code
    (zhangmiaosen2000/Towards-On-Policy-SFT, fsdp_polylog_trainer.py) has this g and b = 1, but
    differentiates the factor too: its weight is p(y)^g (1 + g log p(y)), negative for unlikely
    targets.
    """

    name: str = "idft"
    surprise_scale: float = 1.0
    """b, in nats: how much likelier or less likely than usual a target has to be for its weight to
    change."""

    label: ClassVar[str] = "IDFT"
    arxiv: ClassVar[str] = "2602.12222"
    loss: ClassVar[str] = "−p(y)^g log p(y), p(y)^g without gradient"
    gradient: ClassVar[str] = "p(y)^g (p − e_y), g = exp(−(log p(y) + H) / b) in [0.1, 2]"
    meaning: ClassVar[str] = (
        "Learns a target more, the likelier it is compared with the model's own tokens on average."
    )
    helps: ClassVar[str] = (
        "Where the data should resemble the model's own text: generalizes as well as DPO and SimPO "
        "(arXiv:2602.12222, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where the data has facts that are new to the model: hardly learned (follows from the"
        " weight)."
    )
    example: ClassVar[Example] = Example(0.0866433976, -0.046875)

    def __post_init__(self) -> None:
        self.require(0 < self.surprise_scale < float("inf"), "surprise_scale", "a number > 0")

    def weight(self, xp, p, log_p, entropy):
        """Return p^g."""
        return xp.exp(xp.clamp(xp.exp((log_p + entropy) / -self.surprise_scale), 0.1, 2.0) * log_p)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#c2410c", "#fb8a5a", "8")
