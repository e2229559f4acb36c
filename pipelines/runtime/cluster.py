"""The Ray cluster that a run uses: the one at RAY_ADDRESS, or one of its own on this machine.

In: how many logical CPUs the run needs and where logs go. Out: an initialised Ray while the body of
`running` runs, with RAY_ADDRESS set so that every process of the run finds the same one.
"""

import gc
import logging
import math
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines.config.presets import SweepConfig
from pipelines.runtime import autoscaling, console
from pipelines.runtime.stopping import end_at_sigterm
from tuning.resources import Bundle, total_resources, trial_resources

REPOSITORY = Path(__file__).resolve().parents[2]
_TRIAL_BYTES = 4 * 2**30  # the processes of a small trial


@contextmanager
def running(logs: Path, cpus: int, *needs: Sequence[Bundle]) -> Iterator[None]:
    """Connect to or start Ray; a cluster of its own is stopped afterwards, its logs kept in `logs`.

    Args:
        logs: directory for the logs of Ray.
        cpus: logical CPUs of a cluster of its own; see `places`.
        needs: each of them must find room on the cluster at RAY_ADDRESS; see `capacity.wait`.

    Raises:
        ValueError: RAY_ADDRESS names no cluster, or one of another version of Ray, or one that
            does not grow to what is needed.
    """
    address = os.environ.get("RAY_ADDRESS")
    at_sigterm = signal.getsignal(signal.SIGTERM)
    with _environment(), console.others_to(logs / "driver.log"):
        try:
            connect(address, cpus)
            os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
            _to_file(logs / "driver.log")
            end_at_sigterm()  # Ray's own way, set by `connect`, would leave Serve on a cluster
            if address:
                autoscaling.wait(*needs)
            yield
        finally:
            session = ray._private.worker._global_node
            folder = Path(session.get_logs_dir_path()) if session and not address else None
            _shut_down()
            signal.signal(signal.SIGTERM, at_sigterm or signal.SIG_DFL)
            if folder is not None:
                with suppress(OSError, shutil.Error):
                    shutil.copytree(folder, logs / "ray", dirs_exist_ok=True)


def connect(address: str | None, cpus: int) -> None:
    """`ray.init`, with errors that say what to do.

    Raises:
        ValueError: no cluster at `address`, or one of another version of Ray.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            **options,
        )
        return
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(
            f"RAY_ADDRESS is {address}, but Ray {ray.__version__} can't use it "
            f"({' '.join(lines[:7])[:300]}): start that version there, or unset RAY_ADDRESS"
        ) from error


def _shut_down() -> None:
    """`ray.shutdown`, without automatic garbage collection, in whatever thread, meanwhile.

    A reference of Ray's that is collected when Ray's core has gone, and Python does not know it
    yet, ends the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def places(config: SweepConfig) -> int:
    """Logical CPUs of a cluster of its own: for as many trials at once as the machine is good for.

    They are places in a schedule, not cores.
    """
    trial = total_resources(trial_resources(config.train.workers))["CPU"]
    return math.ceil(max(_at_once(config) * trial, config.engine.least_replicas + 1))


def _at_once(config: SweepConfig) -> int:
    """Trials that this machine's cores and memory are enough for; at least one."""
    workers = config.train.workers
    cores = (os.cpu_count() or 1) // max(1, workers.count * workers.cpus)
    memory = psutil.virtual_memory().total // (_TRIAL_BYTES * workers.count)
    return int(max(1, min(cores, memory, config.search.max_concurrent or cores)))


@contextmanager
def _environment() -> Iterator[None]:
    """What the processes of the run inherit; put back afterwards."""
    path = os.environ.get("PYTHONPATH", "")
    if str(REPOSITORY) not in path.split(os.pathsep):
        path = os.pathsep.join(filter(None, [str(REPOSITORY), path]))
    wanted = {
        "PYTHONPATH": path,
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a box, however silent it is asked to be
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would return as if the trials had ended
    }
    before = {key: os.environ.get(key) for key in [*wanted, "RAY_ADDRESS"]}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _to_file(path: Path) -> None:
    """Send what Ray says in this process to a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "ray.data", "ray.serve", "ray.train", "ray.tune"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name != "ray"
    logging.getLogger("ray").handlers = [handler]
