"""The one place that builds a TorchTrainer.

In: a `TrainConfig`, a storage path (local or a URI) and a name. Out: Ray Train's `Result`, whose
checkpoint is a Hugging Face directory. The same storage and name again continue the run.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import fsspec
import ray
import ray.train
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from otr.config import TrainConfig
from otr.loop.identity import check_same, identity
from otr.training.checkpoint_store import recover
from otr.training.sources import absolute_path, corpus_identity
from otr.training.worker import Job, train_loop

RETRIES = 3
WAIT_SECONDS = 7 * 24 * 3600  # for a place
_LOST_PEER = re.compile(
    "Connection (closed|reset) by peer|Broken pipe|NCCL|Socket Timeout|[Tt]imed out waiting"
)
IDENTITY = "identity.json"


class Preempted(RuntimeError):
    """A run saved and ended, since a host of its workers is to be taken away."""


def fit(
    config: TrainConfig,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    run: dict[str, Any] | None = None,
    stop_file: str | None = None,
) -> Result:
    """Train to `config.max_steps`, from the run's newest whole checkpoint if it has one.

    A run whose worker, controller or host died, or whose host is to be taken away, is begun again,
    up to RETRIES times without a new checkpoint; one that raised an error is not. The last two
    checkpoints stay, and the one with the lowest validation NLL, which
    `otr.training.checkpoint_store.best` names; `Result.checkpoint` is the last.

    Args:
        config: the run.
        storage: directory or URI that every worker reaches.
        name: of the run below `storage`; checkpoints are `<storage>/<name>/step-000100`.
        callbacks: `ray.train.UserCallback`s, called in its controller.
        run: what a checkpoint's run.json says.
        stop_file: path or URI; where it exists, the run saves and returns before its last step.

    Raises:
        ValueError: `storage` can't be written, or holds a run of this name with another model,
            data or objective.
        ray.train.TrainingFailedError: a worker failed; `worker_error` gives its own error.
    """
    storage, config = absolute_path(storage), _with_absolute_paths(config)
    _check_identity(config, f"{storage}/{name}")
    several_hosts = len([node for node in ray.nodes() if node["Alive"]]) > 1
    # How often the controller looks at its workers: Ray's 2 s add that much to each end of a run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # The watcher is one more process to start, and sees nothing where no other host can be lost.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several_hosts)))
    # A host in the place of a lost one takes minutes to start, another trial hours to make room.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WAIT_SECONDS))
    # Of Ray's: the controller asks it before it begins workers. So it starts beside the controller.
    coordinator.get_or_create_autoscaling_coordinator()
    deaths, before = 0, None
    while True:
        newest, notes = recover(f"{storage}/{name}")
        deaths, before = (deaths if newest == before else 0), newest
        job = Job(config, f"{storage}/{name}", run, stop_file, newest, tuple(notes))
        try:
            result = _trainer(job, storage, name, callbacks).fit()
            done = (result.metrics or {}).get("step", 0) >= config.max_steps
            if done or told_to_stop(stop_file):
                return result
            raise Preempted(f"{storage}/{name} ended before its last step: a host is to go")
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, Preempted) as error:
            deaths += 1
            if deaths > RETRIES or not _died(error):
                raise


def _trainer(job: Job, storage: str, name: str, callbacks: Sequence[Any]) -> TorchTrainer:
    workers = job.config.workers
    # Ray leaves the GPUs visible to a worker that asks for none.
    hides = not workers.gpus and ray.cluster_resources().get("GPU", 0) > 0
    return TorchTrainer(
        partial(train_loop, job),
        # gloo too, as what is read and what is saved lies in the host's memory.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus else None),
        scaling_config=scaling(job.config),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[*callbacks],
            worker_runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hides else {},
            # Begun again by Ray itself, a run would go on from where this attempt began.
            failure_config=FailureConfig(  # type: ignore[call-arg]  # Ray types its old one
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )


def told_to_stop(stop_file: str | None) -> bool:
    """Whether there is a file that tells runs to save and return; `stop_file` is a path or URI."""
    if stop_file is None:
        return False
    fs, inner = fsspec.core.url_to_fs(stop_file)
    return bool(fs.exists(inner))


def _died(error: BaseException) -> bool:
    """Whether a process was lost, here or on another host, and not one of ours raised an error."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return not isinstance(getattr(error, "controller_failure", None), ValueError)
    return any(
        not isinstance(failure, UserExceptionWithTraceback) or _LOST_PEER.search(str(failure))
        for failure in failures.values()
    )


def _check_identity(config: TrainConfig, directory: str) -> None:
    """Compare the run with the one that the directory began with; write it down where none did."""
    now = identity(config, corpus_identity(config.data))
    fs, inner = fsspec.core.url_to_fs(f"{directory}/{IDENTITY}")
    if fs.exists(inner):
        check_same(json.loads(fs.cat_file(inner)), now, directory)
        return
    try:
        fs.makedirs(inner.rpartition("/")[0], exist_ok=True)
        with fs.transaction, fs.open(inner, "w") as file:  # whole or not at all
            json.dump(now, file, indent=2)
    except OSError as error:
        raise ValueError(f"{directory} can't be written to ({error}): give another one") from error


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """As a worker of Ray Train, which has a working directory of its own, finds them."""
    model, data = config.model, config.data
    path = absolute_path(model.path) if os.path.isdir(model.path) else model.path
    paths, validation = (tuple(map(absolute_path, some)) for some in (data.paths, data.validation))
    return replace(
        config,
        model=replace(model, path=path),
        data=replace(data, paths=paths, validation=validation),
    )


def scaling(config: TrainConfig) -> ScalingConfig:
    """What Ray Train reserves for the run; Ray Data and the controller come on top."""
    workers = config.workers
    resources = {"CPU": workers.cpus, "GPU": workers.gpus}
    return ScalingConfig(
        num_workers=workers.count,
        use_gpu=workers.gpus > 0,
        resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
    )


def worker_error(error: BaseException) -> str:
    """One line that says why a run failed: the error that a worker raised, if it was one."""
    failures = list(getattr(error, "worker_failures", {}).values())
    failures.sort(key=lambda failure: _LOST_PEER.search(str(failure)) is not None)
    text = str(failures[0] if failures else error).strip()
    advice = ("Failed to apply UDF", "To change retry attempts")  # Ray Data's, after the reason
    lines = [line for line in text.splitlines() if not line.startswith(advice)]
    return lines[-1] if lines else type(error).__name__
