"""Tune's schedulers with their own rule of which trial is next, at a cost that a sweep keeps.

Tune's own look at all trials that there ever were, at each step: of 1,000 trials that took a fifth
of the scheduler's time (docs/results/scale/README.md).
"""

from operator import attrgetter
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler


class _OfTheLive:
    """Looks at the trials that have not ended."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first that waits to begin, else the first that was paused."""
        live = sorted(tune_controller.get_live_trials(), key=attrgetter("trial_id"))
        statuses = (Trial.PENDING, Trial.PAUSED)
        return next((t for status in statuses for t in live if t.status == status), None)


class Fifo(_OfTheLive, FIFOScheduler):
    """Every trial to its end."""


class Asha(_OfTheLive, ASHAScheduler):
    """Asynchronous successive halving (Li et al., arXiv:1810.05934)."""
