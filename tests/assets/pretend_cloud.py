"""A pretend cloud that has CPU nodes but no GPU node left, and a Ray head that uses it.

Ray's own autoscaler loads `Provider` by its name. A request for a CPU node starts a raylet on this
machine, as in Ray's fake provider; a request for a GPU node raises EC2's error.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

from evals.settings import free_port

ROOT = Path(__file__).parents[2]
HEAD_ID = "f" * 51 + "00000"
REASON = "We currently do not have sufficient g6e.4xlarge capacity in zone a"


class Provider(FakeMultiNodeProvider):
    """Ray's fake provider without GPU capacity."""

    def create_node_with_resources_and_labels(
        self,
        node_config: Any,
        tags: Any,
        count: int,
        resources: dict[str, float],
        labels: Any,
    ) -> None:
        if resources.get("GPU"):
            raise NodeLaunchException("InsufficientInstanceCapacity", REASON, None)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


@contextmanager
def head() -> Iterator[str]:
    """Start a head without CPUs whose autoscaler uses this cloud; yield its address."""
    # Not pytest's tmp_path: paths of Unix sockets must be short.
    folder, port = Path(tempfile.mkdtemp(prefix="otr-cloud-")), free_port()
    file = folder / "cluster.yaml"
    file.write_text(json.dumps(cluster(f"127.0.0.1:{port}")))
    words = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--num-cpus=0"]
    words += ["--node-ip-address=127.0.0.1", f"--port={port}", "--object-store-memory=100000000"]
    words += [f"--temp-dir={folder}/ray", f"--autoscaling-config={file}"]
    words += ["--include-dashboard=false", "--disable-usage-stats"]
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_enable_autoscaler_v2": "0",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_raylet_start_wait_time_s": "300",  # the machine may be busy with other tests
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            words, env=os.environ | settings, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
    try:
        while "Ray runtime started" not in (text := (folder / "log").read_text()):
            assert server.poll() is None, text
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        for process in [psutil.Process(server.pid), *processes_of(folder)]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the processes of the Ray cluster in a directory, including those of fake nodes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(folder) in word for word in process.info["cmdline"] or ()):
            found += [process, *process.children(recursive=True)]
    return found


def cluster(address: str) -> dict[str, Any]:
    """Return the cluster configuration for the autoscaler of the head at `address`."""
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 2, "object_store_memory": 10**8}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 1},
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup")
    return {
        "cluster_name": "pretend",
        "max_workers": 3,
        "idle_timeout_minutes": 10,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": "tests.assets.pretend_cloud.Provider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            name: {"node_config": {}, "min_workers": 0, **resources}
            for name, resources in types.items()
        },
        "head_node_type": "ray.head.default",
        **{f"{name}_commands": [] for name in commands},
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "auth": {},
        "docker": {},
    }
