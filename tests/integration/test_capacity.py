"""A run waits for the nodes that an autoscaler adds, and reports in one line why none comes.

Uses Ray's own autoscaler with a pretend cloud that has CPU nodes but no GPU node left.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group

from otr.config import Workers
from pipelines import _compat
from pipelines.config.presets import PRESETS
from pipelines.runtime import autoscaling
from tests.assets import pretend_cloud
from tuning.resources import trial_resources

pytestmark = pytest.mark.integration


@pytest.fixture
def growing_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pretend_cloud.head() as address:
        connect(address)
        try:
            while _compat.autoscaler_status() is None:
                time.sleep(0.5)
            yield
        finally:
            ray.shutdown()


def connect(address: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_waits_for_cpu_nodes_and_reports_missing_gpu_nodes(
    growing_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    autoscaling.wait_for_nodes([{"CPU": 1}], [{"CPU": 1.5, "GPU": 0}])
    assert ray.cluster_resources()["CPU"] == 2
    status = _compat.autoscaler_status()
    assert status is not None and autoscaling._may_add_nodes(status)

    monkeypatch.setattr(autoscaling, "WAIT_SECONDS", 10)
    with pytest.raises(ValueError, match=r"no nodes for 2 x \(CPU 1, GPU 1\) after \d+ s") as error:
        autoscaling.wait_for_nodes([{"CPU": 1}], [{"CPU": 1, "GPU": 1}] * 2)
    message = str(error.value)
    assert f"gpu: InsufficientInstanceCapacity - {pretend_cloud.REASON}" in message
    assert "in the cluster file" in message and "\n" not in message
    assert "waiting for 2 x (CPU 1, GPU 1)" in capsys.readouterr().err

    assert _compat.internal_kv_get("autoscaler_resource_request") == b"[]", "a request stayed"


def test_cluster_grows_to_hold_all_concurrent_trials(
    growing_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaling, "_REQUEST_PAUSE_SECONDS", 1)
    config = PRESETS["debug"]()
    config = replace(config, train=replace(config.train, workers=Workers(cpus=2)))
    autoscaling.wait_for_nodes(*autoscaling.sweep_needs(config))
    assert ray.cluster_resources()["CPU"] == 2
    first = placement_group([{"CPU": 2}])  # what a running trial holds
    assert first.wait(60)
    with autoscaling.scale_up_for_trials(config, trials=2):
        deadline = time.monotonic() + 120
        while ray.cluster_resources()["CPU"] < 4:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    remove_placement_group(first)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 4:
        assert time.monotonic() < deadline, "a request stayed"
        time.sleep(0.5)


def test_a_need_that_no_node_type_can_hold_fails_soon(
    growing_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaling, "_IDLE_SECONDS", 20)
    with pytest.raises(ValueError, match=r"no nodes for 1 x \(CPU 100\).*no node is starting"):
        autoscaling.wait_for_nodes([{"CPU": 100}])


def test_a_fixed_cluster_is_left_to_the_other_checks() -> None:
    _compat.start_ray(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        start = time.monotonic()
        autoscaling.wait_for_nodes([{"CPU": 100}])
        assert time.monotonic() - start < autoscaling._IDLE_SECONDS
        config = PRESETS["debug"]()
        autoscaling.wait_for_nodes(*autoscaling.sweep_needs(config))
        assert autoscaling.fits(trial_resources(config.train.workers)) and autoscaling.fits([])
        assert not autoscaling.fits([{"CPU": 2}, {"CPU": 0.5}])
    finally:
        ray.shutdown()
