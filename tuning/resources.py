"""Resources that a trial takes from a cluster, and how many trials fit; under Ray's names."""

import time
from collections.abc import Mapping, Sequence

import ray

from otr.config import Workers
from tuning.amounts import count_fitting

Bundle = Mapping[str, float]
"""Amount per resource."""
RELEASE_SECONDS = 5.0  # Ray reports the resources of an ended process as held for up to this long


def free_resources() -> dict[str, float]:
    """Return the cluster's resources that nothing holds.

    Waits up to RELEASE_SECONDS for processes that have just ended to give theirs back.
    """
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        available, total = ray.available_resources(), ray.cluster_resources()
        idle = all(available.get(kind, 0) == total.get(kind, 0) for kind in ("CPU", "GPU"))
        if idle or time.monotonic() > deadline:
            return available
        time.sleep(0.1)


def trial_resources(workers: Workers) -> list[Bundle]:
    """Return the bundles of a trial, one per worker; its driver only waits for them."""
    return [{"CPU": workers.cpus, "GPU": workers.gpus}] * workers.count


def total_resources(bundles: Sequence[Bundle]) -> dict[str, float]:
    """Return the sum of the bundles' CPUs and GPUs."""
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}


def max_concurrent_trials(workers: Workers, resources: Mapping[str, float]) -> int:
    """Return how many trials fit into the resources at once.

    Raises:
        ValueError: not even one fits.
    """
    needs = total_resources(trial_resources(workers))
    fitting = min(
        count_fitting(resources.get(kind, 0), amount) for kind, amount in needs.items() if amount
    )
    if fitting < 1:
        raise ValueError(
            f"a trial needs {needs['CPU']:g} CPUs and "
            f"{needs['GPU']:g} GPUs; free are {resources.get('CPU', 0):g} and "
            f"{resources.get('GPU', 0):g}: use fewer or smaller workers (--train.workers.count, "
            "--train.workers.cpus, --train.workers.gpus), or start Ray with more"
        )
    return fitting
