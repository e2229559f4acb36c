"""The driver of a training run: the one place that builds a TorchTrainer.

A run is a storage path (local or a URI) and a name; started again, it resumes from its newest
checkpoint. A checkpoint is a Hugging Face directory.
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
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from otr.config import TrainConfig
from otr.loop.identity import check_same, identity
from otr.training import _compat
from otr.training.checkpoint_store import recover
from otr.training.sources import absolute_path, corpus_identity
from otr.training.worker import Job, stop_requested, train_loop

RETRIES = 3
START_TIMEOUT_SECONDS = 7 * 24 * 3600
_LOST_PEER = re.compile(
    "Connection (closed|reset) by peer|Broken pipe|NCCL|Socket Timeout|[Tt]imed out waiting"
)
IDENTITY = "identity.json"


class Preempted(RuntimeError):
    """The run saved and ended early because the host of a worker will be taken away."""


def fit(
    config: TrainConfig,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    run: dict[str, Any] | None = None,
    stop_file: str | None = None,
) -> Result:
    """Train to `config.max_steps`, from the run's newest complete checkpoint if it has one.

    A run that loses a process or a host, or whose host will be taken away, is restarted, up to
    RETRIES times without a new checkpoint. A run that raises an error is not. The last two
    checkpoints and the one with the lowest validation NLL stay; `Result.checkpoint` is the last,
    `otr.training.checkpoint_store.best_checkpoint` names the best.

    Args:
        config: the run.
        storage: directory or URI that every worker reaches.
        name: name of the run below `storage`; checkpoints are `<storage>/<name>/step-000100`.
        callbacks: `ray.train.UserCallback`s, called in Ray Train's controller.
        run: content of a checkpoint's run.json.
        stop_file: path or URI; once this file exists, the run saves and returns early.

    Raises:
        ValueError: `storage` can't be written, or holds a run of this name with another model,
            data or objective.
        ray.train.TrainingFailedError: a worker failed; `worker_error` gives its own error.
    """
    storage, config = absolute_path(storage), _with_absolute_paths(config)
    directory = f"{storage}/{name}"
    _check_identity(config, directory)
    _set_ray_train_environment()
    _compat.start_autoscaling_coordinator()
    failures, previous, restarted = 0, None, ""
    while True:
        newest, notes = recover(directory)
        failures, previous = (failures if newest == previous else 0), newest
        notes = [restarted, *notes] if restarted else notes
        job = Job(config, directory, run, stop_file, newest, tuple(notes))
        try:
            result = _trainer(job, storage, name, callbacks).fit()
            finished = (result.metrics or {}).get("step", 0) >= config.max_steps
            if finished or stop_requested(stop_file):
                return result
            raise Preempted(f"{directory} ended early: the host of a worker will be taken away")
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, Preempted) as error:
            failures += 1
            if failures > RETRIES or not _is_retryable(error):
                raise
            restarted = f"restarted after: {worker_error(error)}"


def worker_error(error: BaseException) -> str:
    """Return one line that says why a run failed: a worker's own error, if one raised it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    # An error that a worker raised explains more than its peers' lost connections.
    failures.sort(key=lambda failure: _LOST_PEER.search(str(failure)) is not None)
    text = str(failures[0] if failures else error).strip()
    advice = ("Failed to apply UDF", "To change retry attempts")  # Ray Data's, after the reason
    lines = [line for line in text.splitlines() if not line.startswith(advice)]
    return lines[-1] if lines else type(error).__name__


def _check_identity(config: TrainConfig, directory: str) -> None:
    """Compare the run with the one that the directory holds; record it if there is none.

    Raises:
        ValueError: the directory holds another run, or can't be written.
    """
    now = identity(config, corpus_identity(config.data))
    fs, path = fsspec.core.url_to_fs(f"{directory}/{IDENTITY}")
    if fs.exists(path):
        check_same(json.loads(fs.cat_file(path)), now, directory)
        return
    try:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with fs.transaction, fs.open(path, "w") as file:  # atomic, also on an object store
            json.dump(now, file, indent=2)
    except OSError as error:
        raise ValueError(f"{directory} can't be written to ({error}): give another one") from error


def _set_ray_train_environment() -> None:
    """Set the options of Ray Train that it reads from the environment alone."""
    # How often the controller polls its workers: Ray's 2 s add that much to the end of each run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # The watcher is one more process to start, and useless where no other host can be lost.
    several_hosts = len([node for node in ray.nodes() if node["Alive"]]) > 1
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several_hosts)))
    # A replacement for a lost host takes minutes to start; other trials may hold theirs for hours.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_SECONDS))


def _trainer(job: Job, storage: str, name: str, callbacks: Sequence[Any]) -> TorchTrainer:
    workers = job.config.workers
    resources = {"CPU": workers.cpus, "GPU": workers.gpus}
    # Ray leaves the GPUs visible to a worker that asks for none.
    hide_gpus = not workers.gpus and ray.cluster_resources().get("GPU", 0) > 0
    return TorchTrainer(
        partial(train_loop, job),
        # gloo beside nccl: rows that are read and optimizer state that is saved are in host memory.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus else None),
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[*callbacks],
            worker_runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": ""}} if hide_gpus else {},
            # `fit` restarts runs: Ray would restart this job, from the checkpoint it began with.
            failure_config=FailureConfig(  # type: ignore[call-arg]  # Ray types its old one
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
    )


def _is_retryable(error: BaseException) -> bool:
    """Return whether a run failed because a process or host was lost, not by an error of ours."""
    failures = getattr(error, "worker_failures", None)
    if not failures:
        return not isinstance(getattr(error, "controller_failure", None), ValueError)
    return any(
        _compat.is_process_loss(failure) or _LOST_PEER.search(str(failure))
        for failure in failures.values()
    )


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the config with absolute paths: a Ray Train worker has its own working directory."""
    model, data = config.model, config.data
    path = absolute_path(model.path) if os.path.isdir(model.path) else model.path
    paths, validation = (tuple(map(absolute_path, some)) for some in (data.paths, data.validation))
    return replace(
        config,
        model=replace(model, path=path),
        data=replace(data, paths=paths, validation=validation),
    )
