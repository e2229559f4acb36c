"""Each private upstream interface still exists and behaves as `pipelines._compat` expects."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
import ray

from pipelines import _compat
from tests.assets.newcomer import REPOSITORY


def test_errors_of_the_hub_include_those_of_a_connection() -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import get_session

    client = type(get_session()).__module__.partition(".")[0]
    bases = [each.__module__.partition(".")[0] for each in HfHubHTTPError.__mro__]
    assert client in bases and issubclass(HfHubHTTPError, _compat.hub_errors()[-1])


def v1_report() -> str:
    """Return Ray's own text for one active node, one booting node and one failed launch."""
    from ray.autoscaler._private.autoscaler import AutoscalerSummary
    from ray.autoscaler._private.load_metrics import LoadMetricsSummary
    from ray.autoscaler._private.node_provider_availability_tracker import (
        NodeAvailabilityRecord,
        NodeAvailabilitySummary,
        UnavailableNodeInformation,
    )
    from ray.autoscaler._private.util import format_info_string

    failure = NodeAvailabilityRecord(
        node_type="gpu",
        is_available=False,
        last_checked_timestamp=1.0,
        unavailable_node_information=UnavailableNodeInformation("NoCapacity", "none left in a"),
    )
    nodes = AutoscalerSummary(
        active_nodes={"cpu": 2, "head": 1},
        idle_nodes={},
        pending_nodes=[("10.0.0.5", "cpu", "Setting-up")],
        pending_launches={"gpu": 1},
        failed_nodes=[],
        node_availability_summary=NodeAvailabilitySummary({"gpu": failure}),
    )
    load = LoadMetricsSummary(
        usage={}, resource_demand=[], pg_demand=[], request_demand=[], node_types=[]
    )
    return format_info_string(load, nodes, verbose=True)


def v2_report() -> str:
    """Return Ray's own text for a cluster without nodes."""
    from ray.autoscaler.v2.schema import ClusterStatus
    from ray.autoscaler.v2.utils import ClusterStatusFormatter

    return ClusterStatusFormatter.format(ClusterStatus(), verbose=True)


def test_the_report_of_autoscaler_v1_is_parsed() -> None:
    status = _compat.parse_autoscaler_status(v1_report())
    assert status is not None
    assert status.active_types == {"cpu", "head"}
    assert status.messages == (
        "gpu, 1 launching",
        "10.0.0.5: cpu, setting-up",
        "gpu: NoCapacity - none left in a",
    )


def test_the_report_of_autoscaler_v2_is_parsed() -> None:
    assert _compat.parse_autoscaler_status(v2_report()) == _compat.AutoscalerStatus(frozenset(), ())


def test_a_text_without_node_section_is_none() -> None:
    assert _compat.parse_autoscaler_status("No cluster status.") is None


def test_interfaces_of_a_running_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert _compat.session_log_dir() is None
    handler = signal.getsignal(signal.SIGTERM)
    others = psutil.Process().children(recursive=True)  # of other tests
    with _compat.own_sessions(), _compat.our_signal_handlers():
        _compat.start_ray(num_cpus=1, include_dashboard=False, log_to_driver=False)
    assert signal.getsignal(signal.SIGTERM) is handler
    family = [p for p in psutil.Process().children(recursive=True) if p not in others]
    sessions = {each.pid: os.getsid(each.pid) for each in family}
    try:
        assert any("raylet" in each.name() for each in family)
        assert os.getsid(0) not in sessions.values()
        logs = _compat.session_log_dir()
        assert logs is not None and [*logs.glob("raylet*")]
        deadline = time.monotonic() + 60
        while (status := _compat.autoscaler_status()) is None:
            assert time.monotonic() < deadline, "the autoscaler has not reported"
            time.sleep(0.2)
        # A node that nobody's autoscaler started is listed by its id.
        assert [name[:5] for name in status.active_types] == ["node_"]
        assert _compat.internal_kv_get("autoscaler_resource_request") is None
    finally:
        ray.shutdown()
    assert not psutil.wait_procs(family, timeout=60)[1], "a process of Ray is left"


def slow_node(patch: pytest.MonkeyPatch, starts: list[str]) -> None:
    """Let the first node take longer than Ray waits; note the address of each cluster asked."""
    from ray._private import node, services

    class FastClock:
        """A clock on which the 30 seconds have passed when Ray has asked for its node twice."""

        sleep, time = time.sleep, time.time

        def monotonic(self) -> float:
            return 20.0 * len(starts)

    get_node = services.get_node

    def too_slow(gcs_address: str, node_id: str):
        starts.append(gcs_address)
        if len(starts) <= 2:
            raise RuntimeError("not yet")
        return get_node(gcs_address, node_id)

    patch.setattr(services, "get_node", too_slow)
    patch.setattr(node, "time", FastClock())


def slow_gcs(patch: pytest.MonkeyPatch, starts: list[str]) -> None:
    """Let the first process of the cluster's state take longer; note each one's session."""
    from ray._private import node

    wait = node.wait_for_persisted_port

    def too_slow(session_dir: str, node_id: str, name: str, timeout_ms: int):
        if name == node.GCS_SERVER_PORT_NAME:
            starts.append(session_dir)
            timeout_ms = 0 if len(starts) == 1 else timeout_ms
        return wait(session_dir, node_id, name, timeout_ms=timeout_ms)

    patch.setattr(node, "wait_for_persisted_port", too_slow)


@pytest.mark.parametrize("slow", [slow_node, slow_gcs])
def test_ray_that_was_too_slow_to_start_is_started_again(
    slow: Callable[[pytest.MonkeyPatch, list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    slow(monkeypatch, starts)
    others = psutil.Process().children(recursive=True)
    _compat.start_ray(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        assert ray.cluster_resources()["CPU"] == 1
        assert len(set(starts)) == 2, "two clusters, one after the other"
        family = [p for p in psutil.Process().children(recursive=True) if p not in others]
        for name in ("raylet", "gcs_server"):
            assert sum(p.name() == name for p in family) == 1, "the first cluster still runs"
    finally:
        ray.shutdown()


STARTS_RAY = """
import time
from collections.abc import Callable
from pipelines import _compat
with _compat.own_sessions():
    _compat.start_ray(num_cpus=1, include_dashboard=False, log_to_driver=False)
print("started", flush=True)
time.sleep(600)
"""


def test_processes_in_own_sessions_end_with_a_killed_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The raylet's own agents end a minute later, with or without sessions: they seek the GCS."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with subprocess.Popen(
        [sys.executable, "-c", STARTS_RAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
        text=True,
    ) as driver:
        assert driver.stdout is not None and "started" in driver.stdout.read(len("started\n"))
        family = psutil.Process(driver.pid).children()
        driver.kill()
    assert len(family) > 2
    assert not psutil.wait_procs(family, timeout=60)[1], "a process of Ray is left"


def test_cluster_schema_is_a_schema_of_cluster_files() -> None:
    assert "available_node_types" in _compat.cluster_schema()["properties"]


def test_schema_revision_is_the_one_that_mlflow_writes() -> None:
    revision = _compat.mlflow_schema_revision()
    assert revision and revision.isalnum()
