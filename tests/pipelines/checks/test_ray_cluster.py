"""A cluster with too few devices, other packages or unshared storage is refused."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from otr.config import Workers
from pipelines import _compat
from pipelines.checks import machine, ray_cluster
from pipelines.config.presets import SweepConfig
from pipelines.runtime import versions

WITHOUT_PROJECT = """
import pickle, sys
sys.modules["pipelines"] = None  # importing it fails
print(pickle.loads(sys.stdin.buffer.read())(("ray",)))
"""


def with_train(config: SweepConfig, **changes: Any) -> SweepConfig:
    return replace(config, train=replace(config.train, **changes))


def test_more_workers_than_gpus(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    wrong = with_train(config, workers=Workers(4, gpus=1), micro_batch_size=1)
    with pytest.raises(ValueError, match=r"count is 4 with 1 GPUs each, .* has 2: .*count 2 or"):
        machine.check_devices(wrong)
    assert machine.check_devices(with_train(wrong, workers=Workers(4, gpus=0.5))) == "2 of 2 GPUs"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--train\.workers\.gpus 0"):
        machine.check_devices(wrong)
    many = with_train(config, workers=Workers(8), micro_batch_size=1)
    assert machine.check_devices(many).startswith("8 logical CPUs")


def test_a_node_that_does_not_share_the_directory(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert "No such file" in ray_cluster._visit(str(mark))
    mark.write_text("of another")
    assert "another file" in ray_cluster._visit(str(mark))
    mark.write_text("seen")
    assert ray_cluster._visit(str(mark)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mark"], "a test file stayed"


def test_every_node_is_checked(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _compat.start_ray(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert ray_cluster.check_nodes(config) == f"1 nodes share {config.output}"
        assert not Path(config.output).exists(), "the check left a directory"
        with pytest.raises(ValueError, match="count is 4 with 1 CPUs each, but the cluster has 2"):
            ray_cluster.check_nodes(with_train(config, workers=Workers(4), micro_batch_size=1))
        monkeypatch.setattr(ray_cluster, "_visit", lambda mark: "read-only")
        with pytest.raises(ValueError, match=r"not the same on every node .*: read-only"):
            ray_cluster.check_nodes(config)
        monkeypatch.setattr(ray_cluster, "_run_on", lambda *_: ("10.0.0.2", {"torch": "2.1.0"}))
        with pytest.raises(ValueError, match=r"10\.0\.0\.2 has ray missing, .* torch 2\.1\.0, but"):
            ray_cluster.check_nodes(config)
    finally:
        ray.shutdown()


def test_functions_for_a_node_need_no_project_there() -> None:
    ray.cloudpickle.register_pickle_by_value(versions)
    sent = ray.cloudpickle.dumps(versions.installed_versions)
    assert pickle.loads(sent)(("ray",)) == versions.installed_versions(("ray",))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PROJECT], input=sent, capture_output=True, check=True
    )
    assert ray.__version__ in done.stdout.decode()
