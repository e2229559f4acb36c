"""The Ray cluster of a run: the one at RAY_ADDRESS, or a local one that ends with the run."""

import gc
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines import _compat
from pipelines.config.presets import SweepConfig
from pipelines.runtime import autoscaling, console
from pipelines.runtime.stopping import exit_afterwards
from tuning.resources import Bundle, total_resources, trial_resources

REPOSITORY = Path(__file__).resolve().parents[2]
_CONNECT_SECONDS = 10.0
_TRIAL_BYTES = 4 * 2**30  # memory of the processes of a small trial


@contextmanager
def ray_session(logs: Path, cpus: int, *needs: Sequence[Bundle]) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start a local one, while the body runs.

    RAY_ADDRESS is set meanwhile, so that every process of the run finds the same cluster. A local
    cluster is stopped afterwards.

    Args:
        logs: directory for the driver's log and the logs of a local cluster.
        cpus: logical CPUs of a local cluster; see `logical_cpus`.
        needs: what must fit on the cluster at RAY_ADDRESS; see `autoscaling.wait_for_nodes`.

    Raises:
        ValueError: no cluster answers at RAY_ADDRESS, it runs another version of Ray, or it does
            not grow to what is needed.
    """
    address = os.environ.get("RAY_ADDRESS")
    with _run_environment(), console.other_output_to(logs / "driver.log"):
        try:
            with exit_afterwards():  # half a Ray can't be shut down
                connect(address, cpus)
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
            _ray_logs_to(logs / "driver.log")
            if address:
                autoscaling.wait_for_nodes(*needs)
            yield
        finally:
            ray_logs = None if address else _compat.session_log_dir()
            _shut_down()
            if ray_logs is not None:
                with suppress(OSError, shutil.Error):
                    shutil.copytree(ray_logs, logs / "ray", dirs_exist_ok=True)


def connect(address: str | None, cpus: int) -> None:
    """Connect to the cluster at `address`, or start a local one with `cpus` logical CPUs.

    Raises:
        ValueError: no cluster answers at `address`, or it runs another version of Ray.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        with _compat.our_signal_handlers(), _compat.own_sessions():
            _compat.start_ray(
                num_cpus=cpus, include_dashboard=True, dashboard_host="127.0.0.1", **options
            )
        return
    try:
        _check_port(address)
        with _compat.our_signal_handlers():
            ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"RAY_ADDRESS is {address}, but Ray {ray.__version__} can't connect to it "
            f"({' '.join(lines[:7])[:300]}): start that version there, or unset RAY_ADDRESS"
        ) from error


def _check_port(address: str) -> None:
    """Check that something listens at the address of a cluster; `ray.init` would try for minutes.

    Raises:
        OSError: nothing does.
        ValueError: the port is no number.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def _shut_down() -> None:
    """Call `ray.shutdown` with automatic garbage collection off in all threads.

    Ray's core ends the process if an object reference is collected after the core has stopped and
    before Python has noticed.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_enabled:
            gc.enable()


def logical_cpus(config: SweepConfig) -> int:
    """Return the logical CPUs for a local cluster: enough for the trials this machine can run.

    They are slots of Ray's scheduler and may exceed the machine's cores.
    """
    trial = total_resources(trial_resources(config.train.workers))["CPU"]
    trials, engine = _concurrent_trials(config) * trial, config.engine.least_replicas
    return math.ceil(trials + engine if config.search.benchmark else max(trials, engine + 1))


def own_cores() -> float:
    """Return the cores of this machine if Ray has no other one; infinity if it has."""
    return math.inf if sum(node["Alive"] for node in ray.nodes()) > 1 else os.cpu_count() or 1


def _concurrent_trials(config: SweepConfig) -> int:
    """Return how many trials this machine's cores and memory suffice for; at least one."""
    workers = config.train.workers
    cores = (os.cpu_count() or 1) // max(1, workers.count * workers.cpus)
    memory = psutil.virtual_memory().total // (_TRIAL_BYTES * workers.count)
    return int(max(1, min(cores, memory, config.search.max_concurrent or cores)))


@contextmanager
def _run_environment() -> Iterator[None]:
    """Set the environment variables that the run's processes inherit; restore them afterwards."""
    path = os.environ.get("PYTHONPATH", "")
    if str(REPOSITORY) not in path.split(os.pathsep):
        path = os.pathsep.join(filter(None, [str(REPOSITORY), path]))
    variables = {
        "PYTHONPATH": path,
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box even when verbosity is 0
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's handler returns as if all trials had finished
    }
    before = {key: os.environ.get(key) for key in [*variables, "RAY_ADDRESS"]}
    os.environ.update(variables)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _ray_logs_to(path: Path) -> None:
    """Send the log messages of Ray's libraries in this process to a file, not the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "ray"
    logging.getLogger("ray").handlers = [handler]
