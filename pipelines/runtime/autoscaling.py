"""Wait for the nodes that an autoscaling cluster adds.

A need is a list of bundles ({resource: amount}) that must fit on the cluster at the same time. On a
cluster that does not grow nothing here waits or fails: the checks that follow count its resources.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread

import ray

from pipelines._compat import AutoscalerStatus, autoscaler_status
from pipelines.config.presets import SweepConfig
from pipelines.runtime import console
from tuning.amounts import is_enough
from tuning.resources import Bundle, trial_resources

WAIT_SECONDS = 1200
"""Longest wait for nodes: a cloud has to boot them and install packages, or find spot capacity."""
_POLL_SECONDS = 1.0
_REQUEST_PAUSE_SECONDS = 20.0
_IDLE_SECONDS = 60  # an autoscaler that reports nothing for so long won't add a node


def engine_bundles(config: SweepConfig) -> list[Bundle]:
    """Return what the engine's replicas need: one bundle per replica."""
    return [{"CPU": 1, "GPU": config.engine.gpus}] * config.engine.least_replicas


def sweep_needs(config: SweepConfig) -> tuple[list[Bundle], list[Bundle]]:
    """Return what one trial needs, and what the engine needs; they may run one after the other.

    A search that decides by answers needs both at once.
    """
    trial, engine = list(trial_resources(config.train.workers)), engine_bundles(config)
    return ([*trial, *engine], engine) if config.search.benchmark else (trial, engine)


def need_of_trials(config: SweepConfig, trials: int) -> list[Bundle]:
    """Return what all trials that may run at once need, with the engine if it scores meanwhile.

    Args:
        config: the sweep.
        trials: number of trials of the sweep, or of its search.
    """
    most = min(trials, config.search.max_concurrent or trials)
    beside = engine_bundles(config) if config.search.benchmark else []
    return [*list(trial_resources(config.train.workers)) * most, *beside]


def wait_for_nodes(*needs: Sequence[Bundle]) -> None:
    """Wait until each need on its own fits on the nodes that are alive.

    Raises:
        ValueError: the autoscaler did not add the nodes within `WAIT_SECONDS`.
    """
    if all(map(fits, needs)):
        return
    with console.stage("nodes") as stage:
        for need in needs:
            with _requested(need):
                _wait_for(need, stage)
        stage.say(f"{sum(node['Alive'] for node in ray.nodes())} nodes are alive")


def _wait_for(need: Sequence[Bundle], stage: console.Stage) -> None:
    start = last_activity = time.monotonic()
    while not fits(need):
        status, now = autoscaler_status(), time.monotonic()
        if not (_may_add_nodes(status) if status else now - start < _IDLE_SECONDS):
            return
        messages = status.messages if status else ()
        if messages:
            last_activity = now
        report = "; ".join(messages) or "no node is starting"
        if now - start > WAIT_SECONDS or now - last_activity > _IDLE_SECONDS:
            raise ValueError(
                f"the cluster has no nodes for {_formatted(need)} after {now - start:.0f} s; the "
                f"autoscaler reports: {report}; allow more nodes, or another node type or zone, in "
                "the cluster file, or use fewer resources (options --train.workers.* and "
                "--engine.*); then run the same command again to resume"
            )
        stage.say(f"waiting for {_formatted(need)}; {report}")
        time.sleep(_POLL_SECONDS)


@contextmanager
def scale_up_for_trials(config: SweepConfig, trials: int) -> Iterator[None]:
    """While the body runs, make the cluster grow until all concurrent trials fit.

    Tune starts a trial only where resources are free, so without this request the autoscaler sees
    no demand for more nodes.

    Args:
        config: the sweep.
        trials: number of trials of the sweep, or of its search.
    """
    trial, need = trial_resources(config.train.workers), need_of_trials(config, trials)
    done = Event()
    thread = Thread(target=_request_until_fits, args=(trial, need, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _request_until_fits(trial: Sequence[Bundle], need: Sequence[Bundle], done: Event) -> None:
    """Request a trial's placement group again and again; release each as soon as it is granted.

    Placement groups, unlike `request_resources`, end with this process however it ends, and Ray
    Data does not overwrite them.
    """
    from ray.util import placement_group, remove_placement_group

    try:
        status = autoscaler_status()
        if status is None or not _adds_nodes(status):
            return
        while not fits(need) and not done.is_set():
            group = placement_group(_without_zeros(trial))
            try:
                while not group.wait(0) and not done.wait(_POLL_SECONDS):
                    pass
            finally:
                remove_placement_group(group)
            done.wait(_REQUEST_PAUSE_SECONDS)  # trials take the new resources meanwhile
    except Exception:  # the sweep continues on the present nodes, or fails with the same error
        return


def fits(need: Sequence[Bundle]) -> bool:
    """Return whether the nodes that are alive could hold all bundles if they were idle."""
    free = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in sorted(need, key=lambda b: (b.get("GPU", 0), b.get("CPU", 0)), reverse=True):
        for node in free:
            if all(is_enough(node.get(kind, 0), amount) for kind, amount in bundle.items()):
                for kind, amount in bundle.items():
                    node[kind] = node.get(kind, 0) - amount
                break
        else:
            return False
    return True


@contextmanager
def _requested(need: Sequence[Bundle]) -> Iterator[None]:
    """Request `need` from the autoscaler while the body runs.

    A request that stayed would keep idle nodes alive for ever.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=_without_zeros(need))
    try:
        yield
    finally:
        request_resources(bundles=[])


def _without_zeros(need: Sequence[Bundle]) -> list[dict[str, float]]:
    """Return the bundles without zero amounts, which Ray rejects."""
    return [{kind: amount for kind, amount in bundle.items() if amount} for bundle in need]


def _may_add_nodes(status: AutoscalerStatus) -> bool:
    """Return False if people started the nodes: those have no type and are listed by their id."""
    return not any(kind.startswith("node_") for kind in status.active_types)


def _adds_nodes(status: AutoscalerStatus) -> bool:
    """Return whether the autoscaler has added a node that is not one of a fixed list of hosts."""
    types = status.active_types
    return bool(types) and _may_add_nodes(status) and "local.cluster.node" not in types


def _formatted(need: Sequence[Bundle]) -> str:
    """Return the bundles as text, equal ones counted: 2 x (CPU 1, GPU 1) and 1 x (CPU 0.91)."""
    bundles = [
        "(" + ", ".join(f"{kind} {amount:g}" for kind, amount in bundle.items() if amount) + ")"
        for bundle in need
    ]
    return " and ".join(f"{bundles.count(text)} x {text}" for text in dict.fromkeys(bundles))
