"""One network of hosts, one cluster on it and one undisturbed sweep, shared by all tests here.

Tests that request `hosts` or `config` only must run before those that request `cluster`. The
measured times are written to `docs/cluster/trial.json`.
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
STEPS = 200  # optimizer steps of a trial: enough that it still trains when a host joins


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """Boot the storage host, the head and one worker; the other worker stays off."""
    skip = os.environ.get("OTR_CLUSTER_SKIP")
    if skip is None:
        pytest.skip("these tests need namespaces of their own: make test-cluster")
    if skip:
        pytest.skip(skip)
    os.environ["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
    hosts = Hosts(RIG, ["head", "one", "two"])
    hosts.boot(STORAGE)
    hosts.boot("head", "one")
    return hosts


@pytest.fixture(scope="session")
def times() -> Iterator[dict[str, float]]:
    """Collect seconds by label; write them to trial.json at the end."""
    found: dict[str, float] = {}
    yield found
    rounded = {what: round(seconds, 1) for what, seconds in found.items()}
    FILE.with_name("trial.json").write_text(json.dumps(rounded, indent=2) + "\n")
    print("\n".join(f"{seconds:8.1f} s  {what}" for what, seconds in rounded.items()))


@pytest.fixture(scope="session")
def config(hosts: Hosts) -> Cluster:
    """Prepare the cluster, without `ray up`."""
    return Cluster(hosts, RIG)


@pytest.fixture(scope="session")
def cluster(config: Cluster, times: dict[str, float]) -> Cluster:
    """Start the cluster with the head and one worker; Ray keeps trying to reach the other one."""
    config.up()
    times["ray up: returns"] = time.monotonic() - config.began
    config.wait_for_nodes("head", "one")
    times["ray up: all nodes alive"] = time.monotonic() - config.began
    return config


@dataclass
class Sweep:
    """A finished sweep."""

    job: Job
    worker_hosts: list[list[str]]
    """Hosts with training workers after the first trial had started, and after the second."""


@pytest.fixture(scope="session")
def sweep(cluster: Cluster, times: dict[str, float]) -> Sweep:
    """Run two trials where only one fits; boot the second worker when the first trial has begun."""
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
    times["job: code uploaded"] = time.monotonic() - job.began
    job.until("writes to")
    times["job: checks passed"] = time.monotonic() - job.began
    job.until("✓ overlap")
    times["job: corpus compared with the benchmarks"] = time.monotonic() - job.began
    job.wait_for(lambda: cluster.hosts_of("ray::RayTrainWorker"), "a worker")
    times["job: worker process started"] = time.monotonic() - job.began
    job.wait_for(lambda: cluster.reports("debug"), "a report")
    times["job: first step reported"] = time.monotonic() - job.began
    times["ray up to the first step"] = time.monotonic() - cluster.began
    worker_hosts = [cluster.hosts_of("ray::RayTrainWorker")]
    cluster.hosts.boot("two")
    cluster.wait_for_nodes("head", "one", "two")
    job.wait_for(lambda: len({trial for trial, _ in cluster.reports("debug")}) == 2, "both trials")
    worker_hosts.append(cluster.hosts_of("ray::RayTrainWorker"))
    assert job.wait() == 0, job.log
    times["job: the whole sweep"] = time.monotonic() - job.began
    return Sweep(job, worker_hosts)
