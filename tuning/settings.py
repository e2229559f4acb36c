"""How the trials of a sweep are scheduled; no Ray here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SearchSettings:
    """How the trials are scheduled."""

    scheduler: Literal["none", "asha"] = "none"
    """asha stops the worse trials early."""
    metric: str = "val_exact"
    """That asha compares; a key of what training reports. Less is better of ...loss and ...nll."""
    grace_steps: int = 100
    """Steps that every trial may take under asha."""
    max_concurrent: int = 0
    """0: as many as the cluster holds."""

    def __post_init__(self) -> None:
        if self.scheduler not in ("none", "asha"):
            raise ValueError(f"scheduler {self.scheduler!r}: use 'none' or 'asha'")
        if self.grace_steps < 1 or self.max_concurrent < 0:
            raise ValueError(
                f"grace_steps is {self.grace_steps}, max_concurrent {self.max_concurrent}: "
                "use at least 1 and 0"
            )
