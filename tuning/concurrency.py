"""Trials in Tune's own order, as many at once as fit on the nodes that are alive at the moment.

A node that joins late is used; a sweep continues without a node that is lost.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.tune.search import BasicVariantGenerator

from otr.config import Workers
from tuning.resources import free_resources, max_concurrent_trials

REFRESH_SECONDS = 1.0  # Tune asks for the limit at each of its steps; Ray is asked less often


class TrialLimit:
    """How many trials may run at once.

    Args:
        workers: the workers of each trial.
        max_concurrent: most trials at once; 0: as many as fit.

    Raises:
        ValueError: not one trial fits beside what others hold now.
    """

    def __init__(self, workers: Sequence[Workers], max_concurrent: int = 0) -> None:
        free, total = free_resources(), ray.cluster_resources()
        self._workers = [*dict.fromkeys(workers)]  # equal ones are computed once
        self._max_concurrent = max_concurrent
        self._held_by_others = {kind: amount - free.get(kind, 0) for kind, amount in total.items()}
        self._fitting, self._refreshed = self._count_fitting(), time.monotonic()

    def now(self) -> int:
        """Return the current limit; while no trial fits, the last one."""
        if time.monotonic() - self._refreshed > REFRESH_SECONDS:
            with suppress(ValueError):
                self._fitting = self._count_fitting()
            self._refreshed = time.monotonic()
        return min(self._fitting, self._max_concurrent or self._fitting)

    def _count_fitting(self) -> int:
        total = ray.cluster_resources().items()
        ours = {kind: amount - self._held_by_others.get(kind, 0) for kind, amount in total}
        return min(max_concurrent_trials(each, ours) for each in self._workers)


class ElasticVariantGenerator(BasicVariantGenerator):
    """Tune's grid in its own order, with a limit of concurrent trials that follows the cluster."""

    def __init__(self, limit: TrialLimit) -> None:
        self._limit = limit
        super().__init__()

    @property
    def max_concurrent(self) -> int:
        """Current limit of trials at once."""
        return self._limit.now()

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        pass  # the base class sets its own limit when it is constructed

    def add_configurations(self, experiments: Any) -> None:
        """Add the trials of a grid without Tune's copy of all grid values per value."""
        for experiment in experiments:
            for choices in experiment.spec["config"].values():
                choices["grid_search"] = _SharedList(choices["grid_search"])
        super().add_configurations(experiments)

    def get_state(self) -> Any:
        """Return the state that Tune saves with a sweep: the base class's, without the limit."""
        state = super().get_state()
        return state and {key: value for key, value in state.items() if key != "_limit"}


class _SharedList(list[Any]):
    """List that deep copies share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedList":
        return self
