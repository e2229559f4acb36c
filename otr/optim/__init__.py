"""Optimizers and learning-rate schedules by name, as `otr.config.OptimConfig` selects them."""

from typing import TYPE_CHECKING

from otr._lazy import lazy_names
from otr.optim.schedules import SCHEDULES, learning_rate

if TYPE_CHECKING:
    from otr.optim.optimizers import OPTIMIZERS, make_optimizer

__all__ = ["OPTIMIZERS", "SCHEDULES", "learning_rate", "make_optimizer"]
_HOMES = dict.fromkeys(("OPTIMIZERS", "make_optimizer"), "otr.optim.optimizers")
__getattr__ = lazy_names(__name__, _HOMES)  # imports torch
