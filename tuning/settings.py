"""How the trials of a sweep are scheduled. This module does not import Ray."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SearchSettings:
    """How the trials are scheduled."""

    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops the worse trials early; `none` runs every trial to the end."""
    metric: str = "val_exact"
    """Metric that asha compares, such as val_exact, val_nll or val_token_accuracy. Lower is better
    for names that end in loss or nll, higher for all others."""
    grace_steps: int = 100
    """Optimizer steps that every trial takes before asha can stop it."""
    max_concurrent: int = 0
    """Maximum number of trials at once; 0: as many as fit on the cluster."""

    def __post_init__(self) -> None:
        if self.scheduler not in ("none", "asha"):
            raise ValueError(f"scheduler {self.scheduler!r}: use 'none' or 'asha'")
        if self.grace_steps < 1 or self.max_concurrent < 0:
            raise ValueError(
                f"grace_steps is {self.grace_steps}, max_concurrent {self.max_concurrent}: "
                "use at least 1 and 0"
            )
