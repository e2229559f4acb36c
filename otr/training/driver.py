"""The one place that builds a TorchTrainer.

In: a `TrainConfig`, a storage path (local or a URI) and a name. Out: Ray Train's `Result`, whose
checkpoint is a Hugging Face directory. The same storage and name again continue the run.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer

from otr.config import TrainConfig
from otr.training.corpus import packed
from otr.training.sources import absolute
from otr.training.worker import train_loop

HOST_FAILURES = 3


def fit(
    config: TrainConfig,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    run: dict[str, Any] | None = None,
) -> Result:
    """Train to `config.max_steps`, from the run's last checkpoint if it has one.

    Args:
        config: the run.
        storage: directory or URI that every worker reaches.
        name: of the run below `storage`; checkpoints are `<storage>/<name>/step-000100`.
        callbacks: `ray.train.UserCallback`s, called in its controller.
        run: what a checkpoint's run.json says.

    Raises:
        ray.train.TrainingFailedError: a worker failed; `worker_error` gives its own error.
    """
    several_hosts = len([node for node in ray.nodes() if node["Alive"]]) > 1
    # How often the controller looks at its workers: Ray's 2 s add that much to each end of a run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # The watcher is one more process to start, and sees nothing where no other host can be lost.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(several_hosts)))
    storage, config = absolute(storage), _with_absolute_paths(config)
    split: dict[str, Any] = {}
    options = None
    if config.workers.count > 1:
        split["train"] = packed(config.data, config.model)
        options = split["train"].context.execution_options  # Train would set its defaults
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"config": config, "run": run, "directory": f"{storage}/{name}"},
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            callbacks=[*callbacks],
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(  # type: ignore[call-arg]  # Ray types it as its old one
                # A lost host is worth another try; on a single one a failure would come again.
                max_failures=HOST_FAILURES if several_hosts else 0,
                controller_failure_limit=1,
            ),
        ),
        datasets=split,
        dataset_config=DataConfig(execution_options=options),
    )
    return trainer.fit()


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """As a worker of Ray Train, which has a working directory of its own, finds them."""
    model, data = config.model, config.data
    path = absolute(model.path) if os.path.isdir(model.path) else model.path
    paths, validation = (tuple(map(absolute, some)) for some in (data.paths, data.validation))
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
    text = str(failures[0] if failures else error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
