"""Proximal supervised fine-tuning."""

from dataclasses import dataclass
from typing import ClassVar

from otr.loss.objective import Example, Objective, Style


@dataclass(frozen=True)
class Psft(Objective):
    """PPO's clipped loss with an advantage of 1 for each target (arXiv:2508.17784).

    r is the target's probability over its probability under the model that training started from.
    The loss is -min(r, clip(r, 1 - e, 1 + e)), which is -min(r, 1 + e): the lower bound has no
    effect where the advantage is positive. A target that has become 1 + e times as likely is left
    alone.

    The paper's equations were read in summaries only. The authors' code (zwhong714/PSFT,
    run_psft.sh) has the upper bound 0.28, and takes as the old model the one before each batch of
    256 examples, which it learns in 8 steps. Here it is the model before training, so that the
    bound is one on the whole run, and the old probabilities are computed once.
    """

    name: str = "psft"
    clip: float = 0.28
    """e: a target is learned until it is 1 + e times as likely as before training."""

    label: ClassVar[str] = "PSFT"
    arxiv: ClassVar[str] = "2508.17784"
    loss: ClassVar[str] = "−min(r, 1 + e), r = p(y) / p(y) before training"
    gradient: ClassVar[str] = "r (p − e_y) where r < 1 + e, else 0"
    meaning: ClassVar[str] = (
        "Learns as SFT does, until a target is 1 + e times as likely as before."
    )
    helps: ClassVar[str] = (
        "Where general skills must stay: as good as SFT in the domain, better outside it, also in "
        "long training; on mathematics and human values (arXiv:2508.17784, abstract)."
    )
    hurts: ClassVar[str] = (
        "Where what is to be learned is new: an unlikely target becomes at most 1 + e times as "
        "likely (follows from the loss)."
    )
    example: ClassVar[Example] = Example(-1.0, -0.75)

    def __post_init__(self) -> None:
        self.require(0 < self.clip < float("inf"), "clip", "a number > 0")

    def of_ratio(self, xp, ratio):
        """Return the weight and the loss."""
        free = ratio < 1 + self.clip
        return xp.where(free, ratio, 0.0), -xp.where(free, ratio, 1 + self.clip)

    @property
    def style(self) -> Style:
        """Style in figures."""
        return Style("#1e3a8a", "#7c9cf0", "P")
