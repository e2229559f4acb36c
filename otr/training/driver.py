"""The driver of a training run: the one place that builds a TorchTrainer.

A run is a storage path (local or a URI) and a name; started again, it resumes from its newest
checkpoint. A checkpoint is a Hugging Face directory.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import fsspec
import ray
import ray.train
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from otr._compat import is_lost_peer
from otr.config import TrainConfig, Workers
from otr.loop.identity import LENGTH, check_same, identity
from otr.loop.progress import is_over
from otr.training import _compat
from otr.training.checkpoint_store import (
    check_can_go_on,
    delete_old_or_warn,
    last_report,
    recover,
    saved_position,
)
from otr.training.restarts import Preempted, Restart, loss, reason, restart_text
from otr.training.retention import RETAINED, RETAINED_AT_END
from otr.training.sources import absolute_path, corpus_identity
from otr.training.store.write import ensure_store
from otr.training.worker import Job, stop_requested, train_loop

RETRIES = 3
START_TIMEOUT_SECONDS = 7 * 24 * 3600
ELASTIC_START_SECONDS = 30
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
IDENTITY = "identity.json"


def fit(  # noqa: PLR0913 - what a run is made of; all but the config go by keyword
    config: TrainConfig,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    run: dict[str, Any] | None = None,
    stop_file: str | None = None,
    packed: str | None = None,
    retained: int = RETAINED,
) -> Result:
    """Train to the run's end, from its newest complete checkpoint if it has one.

    The end is `config.max_steps`, or an earlier step at which `config.patience` is used up.

    A run may become longer: with a larger `max_steps` it goes on, and from there on the learning
    rate follows the schedule of the new length.

    A run that loses a process or a host, or whose host will be taken away, is restarted, up to
    RETRIES times without a new checkpoint, and its first report then has a `restart` that says why
    and what it cost. A run that raises an error is not (see `otr.training.restarts`). While it
    trains, its last two checkpoints and the one with the lowest validation NLL stay, also when it
    is stopped or fails. Of a finished run the last and the best stay; `Result.checkpoint` is the
    last, `otr.training.checkpoint_store.best_checkpoint` names the best.

    Args:
        config: the run.
        storage: directory or URI that every worker reaches.
        name: name of the run below `storage`; checkpoints are `<storage>/<name>/step-000100`.
        callbacks: `ray.train.UserCallback`s, called in Ray Train's controller.
        run: content of a checkpoint's run.json.
        stop_file: path or URI; once this file exists, the run saves and returns early.
        packed: directory or URI of the packed stores of corpora, which runs share; by default
            `<storage>/packed`.
        retained: number of the newest checkpoints to keep until the run has finished;
            RETAINED_FOR_CALLBACKS if a callback reads the checkpoint of its report.

    Raises:
        ValueError: `storage` can't be written, or holds a run of this name with another model,
            data or objective, or with more steps, or a shorter one whose weights were rounded.
        ray.train.TrainingFailedError: a worker failed; `worker_error` gives its own error.
        RuntimeError: training ended before its last step and nobody had asked for it.
    """
    storage, config = absolute_path(storage), _with_absolute_paths(config)
    directory = f"{storage}/{name}"
    longer = _check_identity(config, directory)
    corpus = ensure_store(config.data, config.model, absolute_path(packed or f"{storage}/packed"))
    _set_ray_train_environment(config.workers)
    _compat.start_autoscaling_coordinator()
    failures, restarts, previous, lost = 0, 0, None, ""
    while True:
        newest, notes = recover(directory)
        notes += [longer] if longer and not restarts else []
        failures, previous = (failures if newest == previous else 0), newest
        restart = None
        if lost:
            saved, reached = saved_position(directory, newest), last_report(directory)
            restart = Restart(restarts, restart_text(lost, saved, reached, time.time()))
        job = Job(
            config, directory, corpus, run, stop_file, newest, tuple(notes), restart, retained
        )
        try:
            result = _trainer(job, storage, name, callbacks).fit()
            last = result.metrics or {}
            if is_over(last, config.max_steps):
                delete_old_or_warn(directory, RETAINED_AT_END)
                return result
            if stop_requested(stop_file):
                return result
            step = last.get("step", 0)
            if not getattr(result, "return_value", False):  # of `train_loop`; Ray's types lack it
                raise RuntimeError(f"{directory} ended at step {step} of {config.max_steps}")
            raise Preempted(f"{directory} ended at step {step}: its host will be taken away")
        except (ray.train.TrainingFailedError, ray.exceptions.RayError, Preempted) as error:
            failures, restarts, lost = failures + 1, restarts + 1, loss(error)
            if failures > RETRIES or not lost:
                raise
        finally:
            _compat.remove_placement_group(directory)


def worker_error(error: BaseException) -> str:
    """Return one line that says why a run failed: a worker's own error, if one raised it."""
    failures = list(getattr(error, "worker_failures", {}).values())
    # An error that a worker raised explains more than its peers' lost connections.
    failures.sort(key=lambda failure: _compat.is_process_loss(failure) or is_lost_peer(failure))
    return reason(failures[0] if failures else error) or type(error).__name__


def stored_max_steps(directory: str) -> int | None:
    """Return the `max_steps` of the run that a directory holds; None if it holds none."""
    fs, path = fsspec.core.url_to_fs(f"{directory}/{IDENTITY}")
    return int(json.loads(fs.cat_file(path))[LENGTH]) if fs.exists(path) else None


def _check_identity(config: TrainConfig, directory: str) -> str:
    """Compare the run with the one that the directory holds; record it if it is new or longer.

    Returns:
        A note if the run has become longer; otherwise empty.

    Raises:
        ValueError: the directory holds another run, or can't be written.
    """
    now, note = identity(config, corpus_identity(config.data)), ""
    fs, path = fsspec.core.url_to_fs(f"{directory}/{IDENTITY}")
    if fs.exists(path):
        before = json.loads(fs.cat_file(path))
        check_same(before, now, directory)
        if before[LENGTH] == config.max_steps:
            return note
        check_can_go_on(directory)
        note = (
            f"has {config.max_steps} steps instead of {before[LENGTH]}: from here on, the learning "
            f"rate follows the schedule of {config.max_steps} steps"
        )
    try:
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with fs.transaction, fs.open(path, "w") as file:  # atomic, also on an object store
            json.dump(now, file, indent=2)
    except OSError as error:
        raise ValueError(f"{directory} can't be written to ({error}): give another one") from error
    return note


def _set_ray_train_environment(workers: Workers) -> None:
    """Set the options of Ray Train that it reads from the environment alone."""
    # How often the controller polls its workers: Ray's 2 s add that much to the end of each run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # The watcher is one more process to start, and useless where no other host can be lost.
    several_hosts = len([node for node in ray.nodes() if node["Alive"]]) > 1
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several_hosts)))
    # A replacement for a lost host takes minutes to start; other trials may hold theirs for hours.
    # With any number of workers Ray starts only what fits, but may count a host that was just lost:
    # `fit` then starts again, with those that are left.
    seconds = ELASTIC_START_SECONDS if workers.min_count else START_TIMEOUT_SECONDS
    own = {None, str(ELASTIC_START_SECONDS), str(START_TIMEOUT_SECONDS)}
    if os.environ.get(START_TIMEOUT) in own:  # not the user's
        os.environ[START_TIMEOUT] = str(seconds)


def runtime_environment(workers: Workers) -> dict[str, Any]:
    """Return Ray's `runtime_env` of processes with these resources.

    Without GPUs none is visible, though Ray leaves them visible to a process that asks for none. On
    a GPU, micro-batches differ in their tokens, and the memory of freed tensors of other sizes can
    only be used again in segments that grow. Host memory for snapshots is not rounded up to powers
    of two.
    """
    if workers.gpus:
        chosen = "expandable_segments:True,pinned_max_round_threshold_mb:1"
        return {"env_vars": {"PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", chosen)}}
    if not ray.cluster_resources().get("GPU", 0):
        return {}
    return {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}


def _trainer(job: Job, storage: str, name: str, callbacks: Sequence[Any]) -> TorchTrainer:
    workers = job.config.workers
    resources = {"CPU": workers.cpus, "GPU": workers.gpus}
    elastic = (workers.min_count, workers.count)
    return TorchTrainer(
        partial(train_loop, job),  # type: ignore[arg-type]  # Ray's type returns None
        # gloo beside nccl: rows that are read and optimizer state that is saved are in host memory.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if workers.gpus else None),
        scaling_config=ScalingConfig(  # type: ignore[call-arg]  # Ray types its old one
            num_workers=elastic if workers.min_count else workers.count,  # type: ignore[arg-type]
            # Never while it runs: Ray would start the new workers with this job, from the
            # checkpoint that it began with.
            elastic_resize_monitor_interval_s=math.inf,
            use_gpu=workers.gpus > 0,
            resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[*callbacks],
            worker_runtime_env=runtime_environment(workers),
            # `fit` restarts runs: Ray would restart this job, from the checkpoint it began with.
            failure_config=FailureConfig(  # type: ignore[call-arg]  # Ray types its old one
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
        ),
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
