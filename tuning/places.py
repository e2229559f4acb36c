"""How many trials run at once: as many as fit on the nodes that are there at the time.

In: what the workers of each trial take. Out: Ray Tune's order of the trials, with that limit; a
node that joins late is used, and one that is lost is done without.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.tune.search import BasicVariantGenerator

from otr.config import Workers
from otr.training.corpus import TASK_CPUS
from tuning.trial import DRIVER_CPUS

Bundle = Mapping[str, float]
"""Resource to amount."""
LOOK_SECONDS = 1.0  # between two looks at the cluster's nodes
SETTLE_SECONDS = 5.0  # in which Ray tells that what has ended holds nothing any more


def free() -> dict[str, float]:
    """What nobody holds of the cluster's resources."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now, there = ray.available_resources(), ray.cluster_resources()
        idle = all(now.get(kind, 0) == there.get(kind, 0) for kind in ("CPU", "GPU"))
        if idle or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def of_trial(workers: Workers) -> Sequence[Bundle]:
    """What a trial takes: its workers, and beside them a core for Ray Data, and its driver."""
    worker = {"CPU": workers.cpus, "GPU": workers.gpus}
    return [worker] * workers.count + [{"CPU": TASK_CPUS + DRIVER_CPUS}]


def total(bundles: Sequence[Bundle]) -> dict[str, float]:
    """CPUs and GPUs of all of them."""
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}


def concurrency(workers: Workers, resources: Mapping[str, float]) -> int:
    """How many trials fit at once.

    Raises:
        ValueError: not even one.
    """
    needs = total(of_trial(workers))
    fitting = min(int(resources.get(kind, 0) / amount) for kind, amount in needs.items() if amount)
    if fitting < 1:
        raise ValueError(
            f"a trial (its workers, Ray Data) needs {needs['CPU']:g} CPUs, {needs['GPU']:g} GPUs; "
            f"free are {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: take fewer or "
            "smaller workers, or start Ray with a larger num_cpus"
        )
    return fitting


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
        unheld, there = free(), ray.cluster_resources()
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
        return min(concurrency(each, left) for each in self._workers)
