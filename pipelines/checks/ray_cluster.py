"""Check the Ray cluster at RAY_ADDRESS: devices, package versions and shared storage of each node.

The functions that run on the nodes are sent by value, and use the standard library only, since a
node may not have this package.
"""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.checks.machine import require_devices
from pipelines.config.presets import SweepConfig
from pipelines.runtime import versions
from pipelines.runtime.cluster import connect

ANSWER_SECONDS = 60
"""Time that a node may take for a tiny task."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to the cluster at `address` while the body runs.

    Raises:
        ValueError: no cluster answers, or it runs another version of Ray.
    """
    connect(address, 1)
    try:
        yield
    finally:
        ray.shutdown()


def check_ray_address(config: SweepConfig) -> str:
    """Check the cluster at RAY_ADDRESS, if it is set; see `check_nodes`."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return f"RAY_ADDRESS is not set: a run starts Ray {ray.__version__} on this machine"
    with connected(address):
        return f"{address}: Ray {ray.__version__}, {check_nodes(config)}"


def check_nodes(config: SweepConfig) -> str:
    """Check devices, versions and storage of the cluster that this process is connected to.

    Each node must read what the driver writes to `config.output`, and must be able to write there;
    all test files are removed.

    Raises:
        ValueError: devices are too few, versions differ, or the output directory is not shared.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    available = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        require_devices(config.train.workers, kind, available.get(kind, 0), "the cluster")
    if other := [text for node in nodes if (text := _version_difference(node))]:
        raise ValueError(f"some nodes have other packages than the driver: {'; '.join(other)}")
    directory = Path(config.output)
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    mark = directory / f".doctor-{uuid.uuid4().hex}"
    try:
        mark.write_text("seen")
        problems = [text for node in nodes if (text := _storage_problem(node, str(mark)))]
    finally:
        mark.unlink(missing_ok=True)
        if is_new:
            directory.rmdir()
    if problems:
        raise ValueError(
            f"{directory} is not the same on every node ({'; '.join(problems)}): give an --output "
            "that all of them share and may write to"
        )
    return f"{len(nodes)} nodes share {directory}"


def _version_difference(node: dict[str, Any]) -> str:
    """Return which versions of a node differ from this process's; empty if none."""
    name, found = _run_on(node, versions.installed_versions, versions.SHARED_PACKAGES)
    if isinstance(found, str):
        return f"{name}: {found}"
    complete = dict.fromkeys(versions.SHARED_PACKAGES, "missing") | found
    messages = ", ".join(versions.version_differences(complete))
    return f"{name} has {messages}" if messages else ""


def _storage_problem(node: dict[str, Any], mark: str) -> str:
    """Return what is wrong with the file `mark` as a node sees it; empty if nothing is."""
    name, problem = _run_on(node, _visit, mark)
    return f"{name}: {problem}" if problem else ""


def _run_on(node: dict[str, Any], call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """Run a call on a node; return the node's name, and the result or the first line of an error.

    The task requests no CPU, so that it also runs on a busy node.
    """
    for module in (sys.modules[__name__], versions):
        ray.cloudpickle.register_pickle_by_value(module)
    on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0)(call).options(scheduling_strategy=on_node)
    name = node.get("NodeManagerAddress") or node["NodeID"]
    try:
        return name, ray.get(task.remote(*arguments), timeout=ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        return name, str(error).strip().splitlines()[0]


def _visit(mark: str) -> str:
    """Read the driver's file `mark`, and write and remove one beside it; return what failed.

    Runs on a node.
    """
    own = f"{mark}-{uuid.uuid4().hex}"
    try:
        with open(mark) as file:
            if file.read() != "seen":
                return "it reads another file than the driver wrote"
        with open(own, "w") as file:
            file.write("seen")
        os.remove(own)
    except OSError as error:
        return str(error)
    return ""
