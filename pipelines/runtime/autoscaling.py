"""Room for a run on a cluster that grows: asked for, waited for, or missed in one clear line.

In: what must fit at the same time, as a list of bundles {resource: amount}. Out: nothing, once the
cluster's nodes hold it; a ValueError with what the autoscaler says where they never do. A cluster
that does not grow is left to the checks that follow.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import ray

from pipelines.config.presets import SweepConfig
from pipelines.runtime import console
from tuning.resources import Bundle, trial_resources

WAIT_SECONDS = 1200
"""For a node: a cloud's to boot and to install the packages, or a spot market to have one."""
_LOOK_SECONDS = 1.0
_WISH_SECONDS = 20.0
_QUIET_SECONDS = 60  # an autoscaler that says nothing for so long won't bring anything


def of_engine(config: SweepConfig) -> list[Bundle]:
    """What the engine's replicas take."""
    return [{"CPU": 1, "GPU": config.engine.gpus}] * config.engine.least_replicas


def of_sweep(config: SweepConfig) -> tuple[list[Bundle], list[Bundle]]:
    """Of one trial, and of the engine, which may come after."""
    return trial_resources(config.train.workers), of_engine(config)


def wait(*needs: Sequence[Bundle]) -> None:
    """Wait until each of `needs` fits on the nodes that are alive, the others aside.

    Raises:
        ValueError: the autoscaler has not brought the nodes within `WAIT_SECONDS`.
    """
    if all(map(fits, needs)):
        return
    with console.stage("nodes") as stage:
        for need in needs:
            with _asked_for(need):
                _wait_for(need, stage)
        stage.say(f"{sum(node['Alive'] for node in ray.nodes())} are there")


def _wait_for(need: Sequence[Bundle], stage: console.Stage) -> None:
    began = busy = time.monotonic()
    while not fits(need):
        said, now = _autoscaler(), time.monotonic()
        if not (said.grows if said else now - began < _QUIET_SECONDS):
            return
        if said and said.words:
            busy = now
        told = (said and said.words) or "nothing is on its way"
        if now - began > WAIT_SECONDS or now - busy > _QUIET_SECONDS:
            raise ValueError(
                f"no room for {_shown(need)} after {now - began:.0f} s; the autoscaler: {told}; "
                "allow more nodes, or nodes of another type or zone, in the cluster's file, or ask "
                "for less (--train.workers, --engine): the same command again goes on from here"
            )
        stage.say(f"waiting for {_shown(need)}; {told}")
        time.sleep(_LOOK_SECONDS)


@contextmanager
def growing(config: SweepConfig) -> Iterator[None]:
    """While the body runs, bring nodes until as many trials have room as may run at once.

    Trials begin only where there is room, so the autoscaler would see no need for more of it.
    """
    most = min(len(config.trials), config.search.max_concurrent or len(config.trials))
    ended = Event()
    thread = Thread(
        target=_wish, args=(trial_resources(config.train.workers), most, ended), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wish(trial: Sequence[Bundle], most: int, ended: Event) -> None:
    """One placement group after the other, each given up as soon as it is granted.

    Unlike a request to the autoscaler it ends with this process, however that ends, and is not
    replaced by a request of Ray Data.
    """
    from ray.util import placement_group, remove_placement_group

    try:
        said = _autoscaler()
        if said is None or not said.brings_more:
            return
        while not fits(trial * most) and not ended.is_set():
            group = placement_group(_asked(trial))
            try:
                while not group.wait(0) and not ended.wait(_LOOK_SECONDS):
                    pass
            finally:
                remove_placement_group(group)
            ended.wait(_WISH_SECONDS)  # for trials to take what has come
    except Exception:  # the sweep goes on with the nodes that it has, or meets it again
        return


def fits(need: Sequence[Bundle]) -> bool:
    """Whether the nodes that are alive hold the bundles, the largest first, were they empty."""
    free = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in sorted(need, key=lambda b: (b.get("GPU", 0), b.get("CPU", 0)), reverse=True):
        for node in free:
            if all(node.get(kind, 0) >= amount for kind, amount in bundle.items()):
                for kind, amount in bundle.items():
                    node[kind] = node.get(kind, 0) - amount
                break
        else:
            return False
    return True


@contextmanager
def _asked_for(need: Sequence[Bundle]) -> Iterator[None]:
    """Ask the autoscaler for it meanwhile; a wish that stays would keep idle nodes for ever."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=_asked(need))
    try:
        yield
    finally:
        request_resources(bundles=[])


def _asked(need: Sequence[Bundle]) -> list[dict[str, float]]:
    """As Ray takes it: no zeros."""
    return [{kind: amount for kind, amount in bundle.items() if amount} for bundle in need]


@dataclass(frozen=True)
class _Said:
    """What the autoscaler says of itself."""

    grows: bool
    """Or may: it does not tell of nodes that people started."""
    brings_more: bool
    """It has brought a node, and not as one of a fixed number of hosts."""
    words: str
    """Nodes on their way, and what failed lately."""


def _autoscaler() -> _Said | None:
    """The report that `ray status` prints; None while there is none."""
    from ray._private import ray_constants as keys
    from ray.autoscaler._private.commands import debug_status
    from ray.experimental.internal_kv import _internal_kv_get as get

    report = debug_status(
        get(keys.DEBUG_AUTOSCALING_STATUS),
        get(keys.DEBUG_AUTOSCALING_ERROR),
        verbose=True,
        address=ray.get_runtime_context().gcs_address,
    )
    parts = re.search(r"Active:\n(.*?)Pending:\n(.*?)Recent failures:\n(.*?)\n\n", report, re.S)
    if parts is None:
        return None
    active, pending, failures = parts.groups()
    kinds = set(re.findall(r"^ \d+ (\S+)", active, re.M))
    # Where nobody but people starts nodes, they have no type, and are named by their id.
    grows = not any(kind.startswith("node_") for kind in kinds)
    brings_more = grows and bool(kinds) and "local.cluster.node" not in kinds
    lines = [re.sub(r" \(latest_attempt: \S+\)", "", s) for s in (pending + failures).splitlines()]
    told = dict.fromkeys(" ".join(line.split()).removesuffix(" -") for line in lines)
    words = "; ".join(line for line in told if line and not line.startswith("(no "))
    return _Said(grows, brings_more, words)


def _shown(need: Sequence[Bundle]) -> str:
    """The bundles, equal ones together: 2 x (CPU 1, GPU 1) and 1 x (CPU 0.91)."""
    words = [
        "(" + ", ".join(f"{kind} {amount:g}" for kind, amount in bundle.items() if amount) + ")"
        for bundle in need
    ]
    return " and ".join(f"{words.count(word)} x {word}" for word in dict.fromkeys(words))
