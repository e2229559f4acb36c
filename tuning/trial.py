"""What Ray Tune runs for a trial: the one driver, with reports forwarded to Tune.

In: Tune's config {"trial": {arm, overrides, seed}}, the sweep's `TrainConfig` and its directory.
Out: reports to Tune, the run in `<directory>/<trial name>/train`. Begun again it goes on from its
last checkpoint.
"""

import os
from dataclasses import asdict
from typing import Any

import ray
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.tune.integration.ray_train import TuneReportCallback

from otr.config import TrainConfig
from otr.training.driver import fit, told_to_stop, worker_error
from tuning.space import Trial, config_of

RUN = "train"  # of the Ray Train run below the trial's directory
ON_HEAD = {"node:__internal_head__": 0.0001}
"""Resources of that process: on the head, which stays when the hosts of workers are lost."""


def run_trial(
    tune_config: dict[str, Any],
    *,
    config: TrainConfig,
    directory: str,
    stop_file: str | None = None,
) -> None:
    """Train one trial.

    Raises:
        RuntimeError: it failed, or was told to stop before its end; the message is the line that
            says why.
    """
    _check_stop(stop_file)
    trial = Trial(**tune_config["trial"])
    own = config_of(config, trial)
    _tell_address()
    storage = f"{directory}/{trial.name}"
    try:
        fit(
            own,
            storage=storage,
            name=RUN,
            callbacks=[TuneReportCallback()],
            run={"trial": asdict(trial), "config": asdict(own)},
            stop_file=stop_file,
        )
    except Exception as error:
        raise RuntimeError(worker_error(error)) from error
    _check_stop(stop_file)


def _check_stop(stop_file: str | None) -> None:
    if told_to_stop(stop_file):
        raise RuntimeError("stopped before its end, as told")


def _tell_address() -> None:
    """Let Ray Train's own processes know which Ray they belong to.

    The one that gives back the CPUs of a trial stopped early looks its Ray up by RAY_ADDRESS. With
    two on a machine it finds neither, and the sweep waits for those CPUs for ever. Ray passes on
    only the variables of this set.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
