"""One trial as Ray Tune runs it: a training run whose reports go on to Tune.

Tune's config is {"trial": {arm, overrides, seed}}. The run lies in
`<directory>/<trial name>/train`; a trial that is started again resumes from its last checkpoint.
"""

import json
import os
from dataclasses import asdict
from typing import Any

import fsspec
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from otr.config import TrainConfig
from otr.training.driver import fit, worker_error
from otr.training.retention import RETAINED, RETAINED_FOR_CALLBACKS
from otr.training.worker import stop_requested
from tuning import _compat
from tuning.judge import Judge, JudgedReports
from tuning.settings import with_scored_checkpoints
from tuning.space import Trial, config_of

RUN = "train"
"""Name of the Ray Train run below the trial's directory."""
ENDED = "ended.json"
"""File in the directory of a search's trial that has ended: its last report."""
DRIVER_RESOURCES = {_compat.HEAD_NODE: 0.0001}
"""Resources of a trial's driver: it runs on the head node, which outlives the workers' hosts."""


def run_trial(
    tune_config: dict[str, Any],
    *,
    config: TrainConfig,
    directory: str,
    stop_file: str | None = None,
    packed: str | None = None,
    judge: Judge | None = None,
) -> None:
    """Train one trial.

    Args:
        tune_config: Tune's config of the trial.
        config: the sweep's config, which the trial overrides.
        directory: the sweep's directory, a path or URI.
        stop_file: the trial saves and fails once this file exists.
        packed: directory or URI of the packed stores of corpora; by default `<directory>/packed`.
        judge: scores the checkpoint of each evaluation.

    Raises:
        RuntimeError: training failed, or was stopped before its end; the message is the one line
            that says why.
    """
    _check_stop_file(stop_file)
    trial = Trial(**tune_config["trial"])
    if report := _last_report(f"{directory}/{trial.name}"):
        # Tune was killed before it had saved that the trial ended; its checkpoints are deleted.
        tune.report(report)
        return
    trial_config = config_of(config, trial)
    _pass_on_ray_address()
    reports, retained = TuneReportCallback(), RETAINED
    if judge is not None:
        trial_config = with_scored_checkpoints(trial_config)
        reports = JudgedReports(judge, trial.name, trial_config)
        retained = RETAINED_FOR_CALLBACKS
    try:
        fit(
            trial_config,
            storage=f"{directory}/{trial.name}",
            name=RUN,
            callbacks=[reports],
            run={"trial": asdict(trial), "config": asdict(trial_config)},
            stop_file=stop_file,
            packed=packed or f"{directory}/packed",
            retained=retained,
        )
    except Exception as error:
        raise RuntimeError(worker_error(error)) from error
    _check_stop_file(stop_file)


def _check_stop_file(stop_file: str | None) -> None:
    if stop_requested(stop_file):
        raise RuntimeError("stopped on request before its last step")


def _last_report(directory: str) -> dict[str, Any] | None:
    """Return the last report of a search's trial that has ended; None for any other."""
    fs, path = fsspec.core.url_to_fs(f"{directory}/{ENDED}")
    return json.loads(fs.cat_file(path)) if fs.exists(path) else None


def _pass_on_ray_address() -> None:
    """Let the processes that Ray Train starts know which Ray they belong to.

    The actor that releases the CPUs of a trial stopped early finds its Ray by RAY_ADDRESS
    (https://github.com/ray-project/ray/pull/58515). With two Rays on a machine and no address it
    finds neither, and the sweep waits for those CPUs for ever.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    _compat.pass_to_train_processes("RAY_ADDRESS")
