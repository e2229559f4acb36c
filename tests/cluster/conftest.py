"""One network of hosts, one cluster on it and one undisturbed sweep for all of these tests.

Whoever asks for `hosts` alone runs before there is a cluster. What the tests measure goes to
`docs/cluster/trial.json`.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import FILE, Cluster, Job
from tests.cluster.rig import STORAGE, Hosts

RIG = Path("/tmp/rig")
STEPS = 200  # of a trial: it still trains when a host has joined


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """The storage, a head and one worker; the other worker is switched off."""
    skip = os.environ.get("OTR_CLUSTER_SKIP")
    if skip is None:
        pytest.skip("these tests want namespaces of their own: make test-cluster")
    if skip:
        pytest.skip(skip)
    os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
    hosts = Hosts(RIG, ["head", "one", "two"])
    hosts.boot(STORAGE)
    hosts.boot("head", "one")
    return hosts


@pytest.fixture(scope="session")
def times() -> Iterator[dict[str, float]]:
    """Seconds by what they passed with; written down at the end."""
    found: dict[str, float] = {}
    yield found
    rounded = {what: round(seconds, 1) for what, seconds in found.items()}
    FILE.with_name("trial.json").write_text(json.dumps(rounded, indent=2) + "\n")
    print("\n".join(f"{seconds:8.1f} s  {what}" for what, seconds in rounded.items()))


@pytest.fixture(scope="session")
def config(hosts: Hosts) -> Cluster:
    """The cluster before `ray up`."""
    return Cluster(hosts, RIG)


@pytest.fixture(scope="session")
def cluster(config: Cluster, times: dict[str, float]) -> Cluster:
    """It is up, with the head and one worker; Ray still tries to reach the other one."""
    config.up()
    times["ray up: it returns"] = time.monotonic() - config.began
    config.wait_for_nodes("head", "one")
    times["ray up: the nodes are alive"] = time.monotonic() - config.began
    return config


@dataclass
class Sweep:
    """A sweep that has ended: the job, and the hosts with workers when each trial had begun."""

    job: Job
    places: list[list[str]]


@pytest.fixture(scope="session")
def sweep(cluster: Cluster, times: dict[str, float]) -> Sweep:
    """Two trials, with room for one; the second worker is switched on when that has begun."""
    steps = [
        "--max-steps",
        str(STEPS),
        "--train.checkpoint-interval",
        "50",
        "--train.eval-interval",
        "100",
    ]
    job = cluster.sweep("debug", *steps)
    job.until("Running entrypoint")
    times["job: its code is there"] = time.monotonic() - job.began
    job.until("writes to")
    times["job: its checks have passed"] = time.monotonic() - job.began
    job.until("✓ overlap")
    times["job: corpus and benchmarks are compared"] = time.monotonic() - job.began
    job.wait_for(lambda: cluster.hosts_of("ray::RayTrainWorker"), "a worker")
    times["job: a worker's process is there"] = time.monotonic() - job.began
    job.wait_for(lambda: cluster.reports("debug"), "a report")
    times["job: the first step is told"] = time.monotonic() - job.began
    times["ray up: to the first step"] = time.monotonic() - cluster.began
    places = [cluster.hosts_of("ray::RayTrainWorker")]
    cluster.hosts.boot("two")
    cluster.wait_for_nodes("head", "one", "two")
    job.wait_for(lambda: len({trial for trial, _ in cluster.reports("debug")}) == 2, "both trials")
    places.append(cluster.hosts_of("ray::RayTrainWorker"))
    assert job.wait() == 0, job.log
    times["job: the whole sweep"] = time.monotonic() - job.began
    return Sweep(job, places)
