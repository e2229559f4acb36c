"""A run waits for the nodes that an autoscaler brings, and tells in a line why none comes.

Ray's own autoscaler, with a cloud that has CPU nodes and no GPU node left.
"""

import time
from collections.abc import Iterator

import pytest
import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group

from pipelines.config.presets import PRESETS
from pipelines.runtime import autoscaling
from tests.assets import pretend_cloud
from tuning.resources import trial_resources

pytestmark = pytest.mark.integration


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pretend_cloud.head() as address:
        connect(address)
        try:
            while autoscaling._autoscaler() is None:
                time.sleep(0.5)
            yield
        finally:
            ray.shutdown()


def connect(address: str) -> None:
    late = time.monotonic() + 120
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError):
            if time.monotonic() > late:
                raise
            time.sleep(1)


def test_nodes_that_come_and_nodes_that_do_not(
    growing: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    autoscaling.wait([{"CPU": 1}], [{"CPU": 1.5, "GPU": 0}])
    assert ray.cluster_resources()["CPU"] == 2
    assert autoscaling._autoscaler().grows

    monkeypatch.setattr(autoscaling, "WAIT_SECONDS", 10)
    with pytest.raises(ValueError, match=r"no room for 2 x \(CPU 1, GPU 1\) after \d+ s") as error:
        autoscaling.wait([{"CPU": 1}], [{"CPU": 1, "GPU": 1}] * 2)
    said = str(error.value)
    assert f"gpu: InsufficientInstanceCapacity - {pretend_cloud.REASON}" in said
    assert "in the cluster's file" in said and "\n" not in said
    assert "waiting for 2 x (CPU 1, GPU 1)" in capsys.readouterr().err

    from ray.experimental.internal_kv import _internal_kv_get

    assert _internal_kv_get("autoscaler_resource_request") == b"[]", "no wish stays behind"


def test_a_sweep_grows_to_its_trials(growing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoscaling, "_WISH_SECONDS", 1)
    config = PRESETS["debug"]()  # two trials, of 1.91 CPUs each
    autoscaling.wait(*autoscaling.of_sweep(config))
    assert ray.cluster_resources()["CPU"] == 2
    first = placement_group([{"CPU": 1}, {"CPU": 0.91}])  # as a trial that runs
    assert first.wait(60)
    with autoscaling.growing(config):
        late = time.monotonic() + 120
        while ray.cluster_resources()["CPU"] < 4:
            assert time.monotonic() < late
            time.sleep(0.5)
    remove_placement_group(first)
    late = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 4:
        assert time.monotonic() < late, "no wish stays behind"
        time.sleep(0.5)


def test_what_no_node_type_can_hold_is_told_soon(
    growing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaling, "_QUIET_SECONDS", 20)
    with pytest.raises(ValueError, match=r"no room for 1 x \(CPU 100\).*nothing is on its way"):
        autoscaling.wait([{"CPU": 100}])


def test_a_cluster_that_does_not_grow_is_left_to_the_other_checks() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        began = time.monotonic()
        autoscaling.wait([{"CPU": 100}])
        assert time.monotonic() - began < autoscaling._QUIET_SECONDS
        config = PRESETS["debug"]()
        autoscaling.wait(*autoscaling.of_sweep(config))
        assert autoscaling.fits(trial_resources(config.train.workers)) and autoscaling.fits([])
        assert not autoscaling.fits([{"CPU": 2}, {"CPU": 0.5}])
    finally:
        ray.shutdown()
