"""What a trial takes of a cluster, and how many fit.

In: the workers of a trial. Out: resources, by Ray's names, and a number of trials.
"""

import time
from collections.abc import Mapping, Sequence

import ray

from otr.config import Workers
from otr.training.corpus import TASK_CPUS

Bundle = Mapping[str, float]
"""Resource to amount."""
DRIVER_CPUS = 0.01  # a trial's own process only waits
SETTLE_SECONDS = 5.0  # in which Ray tells that what has ended holds nothing any more


def free_resources() -> dict[str, float]:
    """What nobody holds of the cluster's resources."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now, there = ray.available_resources(), ray.cluster_resources()
        idle = all(now.get(kind, 0) == there.get(kind, 0) for kind in ("CPU", "GPU"))
        if idle or time.monotonic() > deadline:
            return now
        time.sleep(0.1)


def trial_resources(workers: Workers) -> list[Bundle]:
    """What a trial takes: its workers, and beside them a core for Ray Data, and its driver."""
    worker: Bundle = {"CPU": workers.cpus, "GPU": workers.gpus}
    return [worker] * workers.count + [{"CPU": TASK_CPUS + DRIVER_CPUS}]


def total_resources(bundles: Sequence[Bundle]) -> dict[str, float]:
    """CPUs and GPUs of all of them."""
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}


def max_concurrent_trials(workers: Workers, resources: Mapping[str, float]) -> int:
    """How many trials fit at once.

    Raises:
        ValueError: not even one.
    """
    needs = total_resources(trial_resources(workers))
    fitting = min(int(resources.get(kind, 0) / amount) for kind, amount in needs.items() if amount)
    if fitting < 1:
        raise ValueError(
            f"a trial (its workers, Ray Data) needs {needs['CPU']:g} CPUs, {needs['GPU']:g} GPUs; "
            f"free are {resources.get('CPU', 0):g} and {resources.get('GPU', 0):g}: take fewer or "
            "smaller workers, or start Ray with a larger num_cpus"
        )
    return fitting
