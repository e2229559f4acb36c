"""How many trials run at once: as many as fit on the nodes that are there at the time.

In: what the workers of each trial take. Out: Ray Tune's order of the trials, with that limit; a
node that joins late is used, and one that is lost is done without.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.tune.search import BasicVariantGenerator

from otr.config import Workers
from tuning.resources import free_resources, max_concurrent_trials

LOOK_SECONDS = 1.0  # between two looks at the cluster's nodes


class _Uncopied(list[Any]):
    """A list that a deep copy of what holds it has as it is."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncopied":
        return self


class Order(BasicVariantGenerator):
    """Tune's own order. Tune writes its state down with a sweep, but for the limit.

    Args:
        workers: of each trial.
        most: at once; 0: as many as fit.

    Raises:
        ValueError: not one of them fits beside what others hold now.
    """

    def __init__(self, workers: Sequence[Workers], most: int = 0) -> None:
        unheld, there = free_resources(), ray.cluster_resources()
        self._workers, self._most = [*dict.fromkeys(workers)], most  # equal ones are asked for once
        self._others = {kind: amount - unheld.get(kind, 0) for kind, amount in there.items()}
        self._places, self._looked = self._fitting(), time.monotonic()
        super().__init__()

    @property
    def max_concurrent(self) -> int:
        """The limit now; the last one where no trial fits for a while."""
        if time.monotonic() - self._looked > LOOK_SECONDS:  # Tune asks at each of its steps
            with suppress(ValueError):
                self._places = self._fitting()
            self._looked = time.monotonic()
        return min(self._places, self._most or self._places)

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        """The base class sets one."""

    def add_configurations(self, experiments: Any) -> None:
        """Tune's own, which copies all choices of a search once for each of them."""
        for experiment in experiments:
            for choices in experiment.spec["config"].values():
                choices["grid_search"] = _Uncopied(choices["grid_search"])
        super().add_configurations(experiments)

    def get_state(self) -> Any:
        state = super().get_state()
        ours = ("_workers", "_most", "_others", "_places", "_looked")
        return state and {key: value for key, value in state.items() if key not in ours}

    def _fitting(self) -> int:
        there = ray.cluster_resources().items()
        left = {kind: amount - self._others.get(kind, 0) for kind, amount in there}
        return min(max_concurrent_trials(each, left) for each in self._workers)
