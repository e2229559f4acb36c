"""How far a run has come, and whether it is over."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from otr.config import TrainConfig

ENDED_EARLY = "ended_early"
"""Metric of the last report of a run that `patience` ended before its last step; it is 1."""


def is_over(report: Mapping[str, Any], max_steps: int) -> bool:
    """Return whether a report is the last one of a run that was not interrupted."""
    return report.get("step", 0) >= max_steps or bool(report.get(ENDED_EARLY))


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Optimizer steps taken, skipped ones included."""
    skipped: int = 0
    """Steps that left the weights unchanged, as their loss or gradient was not finite."""
    lowest_val_nll: float | None = None
    """Lowest val_nll of all evaluations so far."""
    stale_evaluations: int = 0
    """Evaluations since that one."""

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """Return the progress in a checkpoint's trainer state, of whatever age."""
        return cls(
            state["step"],
            state["skipped_steps"],
            state.get("lowest_val_nll"),
            state.get("stale_evaluations", 0),
        )

    def evaluated(self, val_nll: float) -> "Progress":
        """Return the progress after an evaluation; NaN and inf are never the lowest."""
        lowest = math.inf if self.lowest_val_nll is None else self.lowest_val_nll
        if val_nll < lowest:
            return replace(self, lowest_val_nll=val_nll, stale_evaluations=0)
        return replace(self, stale_evaluations=self.stale_evaluations + 1)

    def is_stale(self, config: TrainConfig) -> bool:
        """Return whether `config.patience` is used up."""
        return 0 < config.patience <= self.stale_evaluations
