"""A sweep: trials side by side under Ray Tune, each a Ray Train run.

In: a `TrainConfig`, a list of `Trial`s and how to schedule them. Out: one `TrialResult` a trial, in
the order given. Everything of a trial lies in `<storage>/<name>/<trial name>/`. A trial that fails
does not take the others with it.
"""

import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.callback import CallbackList
from ray.tune.logger import JsonLoggerCallback
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import TrialScheduler

from otr.config import TrainConfig
from otr.training.checkpoint_store import list_checkpoints
from otr.training.driver import worker_error
from tuning.concurrency import Order
from tuning.schedulers import Asha, Fifo
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, config_of
from tuning.staging import Staging
from tuning.trial import ON_HEAD, RUN, run_trial

TUNE_KEYS = {*AUTO_RESULT_KEYS, "done", "trial_id"}  # what Tune adds to a report


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial."""

    trial: Trial
    status: Literal["finished", "stopped", "failed"]
    """stopped: early, by the scheduler."""
    history: list[dict[str, Any]]
    """Every report, in order: step, loss, nll, ..., checkpoint_path where one was written. Tune
    writes them down every ten seconds: what came last before a kill is missing."""
    checkpoint: str | None
    """The last one, a Hugging Face directory."""
    error: str | None
    """One line, where it failed."""


def run(  # noqa: PLR0913 - a sweep is what, how and where; all but the what by keyword
    config: TrainConfig,
    trials: Sequence[Trial],
    settings: SearchSettings,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[tune.Callback] = (),
    resume: bool = False,
    stop_file: str | None = None,
) -> list[TrialResult]:
    """Run every trial; with `resume` go on with a sweep that was interrupted.

    Args:
        config: what the trials override.
        trials: at least one, with names that differ.
        settings: how they are scheduled.
        storage: directory or URI that every node reaches.
        name: of the sweep below `storage`.
        callbacks: of Ray Tune, called in this process; `tune_trial.config["trial"]` is the trial as
            a dict {arm, overrides, seed}, `tune_trial.trial_id` stays the same on resume.
        resume: continue the sweep of this storage and name; where there is none, begin it.
            Finished trials stay, interrupted ones go on from their last checkpoint, failed ones are
            tried again.
        stop_file: where it exists, each trial saves and fails, to be continued by `resume`.

    Raises:
        ValueError: the sweep is there and `resume` is off, its trials are others, or the cluster
            is too small for one trial.
    """
    check_names(trials)
    _check_metric(config, settings)
    _settle_tune()
    storage = storage if "://" in storage else os.path.abspath(storage)
    directory = f"{storage}/{name}"
    configs = {trial.name: config_of(config, trial) for trial in trials}
    order = Order([each.workers for each in configs.values()], settings.max_concurrent)
    begun = tune.Tuner.can_restore(directory)
    if begun and not resume:
        raise ValueError(f"{directory} holds a sweep already: resume it, or take another name")
    here: list[tune.Callback] = [ThisProcess([JsonLoggerCallback(), Staging(), *callbacks])]
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, config=config, directory=directory, stop_file=stop_file),
        ON_HEAD,
    )
    tuner = _restored(trainable, trials, directory, here, order) if begun else None
    if tuner is None:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search([asdict(trial) for trial in trials])},
            tune_config=_tune_config(settings, config.max_steps, order),
            run_config=tune.RunConfig(name=name, storage_path=storage, callbacks=here, verbose=0),
        )
    results = {_name_of(result): result for result in _each(tuner.fit())}
    return [
        _outcome(trial, results[trial.name], f"{directory}/{trial.name}", own.max_steps)
        for trial, own in zip(trials, configs.values(), strict=True)
    ]


def _check_metric(config: TrainConfig, settings: SearchSettings) -> None:
    validates = settings.scheduler == "asha" and settings.metric.startswith("val_")
    if validates and not config.data.validation:
        raise ValueError(f"asha compares {settings.metric}: set data.validation")


def _settle_tune() -> None:
    """What Tune takes from the environment and no argument."""
    # A failed trial is told of in its result, and by Tune in `error.txt`; not in the terminal too.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Only some of the reports hold what the scheduler compares.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # Its loggers would write each report three times, TensorBoard's down to the disk.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


def _tune_config(settings: SearchSettings, max_steps: int, order: Order) -> tune.TuneConfig:
    scheduler: TrialScheduler = Fifo()
    if settings.scheduler == "asha":
        scheduler = Asha(
            time_attr="step",
            metric=settings.metric,
            mode="min" if settings.metric.endswith(("loss", "nll")) else "max",
            max_t=max_steps,
            grace_period=min(settings.grace_steps, max_steps),
        )
    return tune.TuneConfig(
        scheduler=scheduler,
        search_alg=order,
        # Spares a process start a trial; a trial that is stopped half-way leaves none to reuse.
        reuse_actors=settings.scheduler == "none",
        trial_name_creator=_name,
        trial_dirname_creator=_name,
    )


class ThisProcess(CallbackList):
    """The callbacks of this process.

    Tune pickles its callbacks with a sweep and brings them back on resume; these may hold what
    can't be pickled, and a resumed sweep wants those of the process that resumes it.
    """

    def __reduce__(self) -> tuple[type["ThisProcess"], tuple[list[tune.Callback]]]:
        return ThisProcess, ([],)


def _restored(
    trainable: Any,
    trials: Sequence[Trial],
    directory: str,
    callbacks: list[tune.Callback],
    order: Order,
) -> tune.Tuner | None:
    """The interrupted sweep; None where Tune did not come to write down how far it was.

    Its trials go on from their checkpoints all the same. Where fewer fit than ran at once before,
    all of these begin, and some of them wait for workers.

    Raises:
        ValueError: it has other trials.
    """
    try:
        tuner = tune.Tuner.restore(directory, trainable, resume_errored=True)
        results = tuner.get_results()
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # nothing there, or half of it
        return None
    assert tuner._local_tuner is not None
    tuner._local_tuner.get_run_config().callbacks = callbacks
    tuner._local_tuner._tune_config.search_alg = order
    begun = {_name_of(result) for result in _each(results)}
    if unknown := begun - {trial.name for trial in trials}:
        some = ", ".join(sorted(unknown)[:3])
        raise ValueError(f"{directory} holds a sweep of other trials ({some}): take another name")
    return tuner


def _outcome(trial: Trial, result: tune.Result, directory: str, max_steps: int) -> TrialResult:
    history = _history(result)
    # Ray gives the path without its scheme; its last part is enough.
    saved = [Path(row["checkpoint_path"]).name for row in history if row.get("checkpoint_path")]
    # A trial that was stopped may have removed what Tune heard of last.
    kept = set(list_checkpoints(f"{directory}/{RUN}"))
    left = [name for name in saved if name in kept]
    status: Literal["finished", "stopped", "failed"] = "finished"
    error = None
    if result.error is not None:
        status, error = "failed", worker_error(result.error).removeprefix("RuntimeError: ")
    elif not history or history[-1]["step"] < max_steps:
        status = "stopped"
    return TrialResult(
        trial=trial,
        status=status,
        history=history,
        checkpoint=f"{directory}/{RUN}/{left[-1]}" if left else None,
        error=error,
    )


def _history(result: tune.Result) -> list[dict[str, Any]]:
    """The reports of all attempts; of a step that was repeated, the last one."""
    frame = result.metrics_dataframe
    rows = [] if frame is None else frame.to_dict("records")
    steps = {}
    for row in rows:
        reported = {
            key: value
            for key, value in row.items()
            if value == value and key not in TUNE_KEYS and not key.startswith("config/")
        }
        steps[int(row["step"])] = reported
    return [steps[step] for step in sorted(steps)]


def _each(grid: tune.ResultGrid) -> list[tune.Result]:
    return [grid[i] for i in range(len(grid))]


def _name(tune_trial: Any) -> str:
    return Trial(**tune_trial.config["trial"]).name


def _name_of(result: tune.Result) -> str:
    return Path(result.path).name
