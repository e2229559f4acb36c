"""Sweeps: trials side by side under Ray Tune, each a Ray Train run.

Everything of a trial lies in `<storage>/<name>/<trial name>/`. A trial that fails does not end the
others.
"""

import logging
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.callback import CallbackList
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import TrialScheduler

from otr.config import TrainConfig
from otr.loop.progress import is_over
from otr.training.checkpoint_store import list_checkpoints
from otr.training.driver import stored_max_steps, worker_error
from tuning import _compat
from tuning.concurrency import ElasticVariantGenerator
from tuning.ended_trials import MoveEndedTrials
from tuning.judge import Judge
from tuning.report_log import ReportLog
from tuning.schedulers import Asha, Fifo
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, config_of
from tuning.trial import DRIVER_RESOURCES, RUN, run_trial

TUNE_KEYS = {*AUTO_RESULT_KEYS, "done", "trial_id"}
"""Keys that Tune adds to a report."""

Status = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial."""

    trial: Trial
    status: Status
    """"stopped" means stopped early by the scheduler. A trial that `patience` ended is finished."""
    history: list[dict[str, Any]]
    """Every report, in order: step, loss, nll, ..., checkpoint_path if a checkpoint was written."""
    checkpoint: str | None
    """The last checkpoint, a Hugging Face directory."""
    error: str | None
    """One line that says why the trial failed."""
    tokens: float = 0
    """Tokens of all steps, padding excluded, those included that were repeated after a restart."""
    seconds: float = 0
    """Time until the last report, over all attempts."""


def run(  # noqa: PLR0913 - the objects of a sweep are few and independent; most go by keyword
    config: TrainConfig,
    trials: Sequence[Trial],
    settings: SearchSettings,
    *,
    storage: str,
    name: str,
    callbacks: Sequence[tune.Callback] = (),
    resume: bool = False,
    stop_file: str | None = None,
    packed: str | None = None,
    judge: Judge | None = None,
) -> list[TrialResult]:
    """Run every trial, or with `resume` continue an interrupted sweep.

    Args:
        config: the config that the trials override.
        trials: at least one; their names differ.
        settings: how the trials are scheduled.
        storage: directory or URI that every node reaches.
        name: name of the sweep below `storage`.
        callbacks: Ray Tune callbacks, called in this process. `tune_trial.config["trial"]` is the
            trial as a dict {arm, overrides, seed}; `tune_trial.trial_id` stays the same on resume.
        resume: continue the sweep of this storage and name, or start it if there is none. Finished
            trials stay, interrupted ones resume from their last checkpoint, failed ones run again.
            If `max_steps` is larger than before, all trials go on from their last checkpoints.
        stop_file: once this file exists, each trial saves and fails; `resume` continues it.
        packed: directory or URI of the packed stores of corpora; by default within the sweep's.
        judge: scores checkpoints on `settings.benchmark`; see `tuning.judge`.

    Returns:
        One result per trial, in the order of `trials`.

    Raises:
        ValueError: the sweep exists and `resume` is off, it has other trials, or the cluster is too
            small for one trial.
    """
    assert judge is not None or not settings.benchmark, "nothing scores search.benchmark"
    check_names(trials)
    _check_metric(config, settings)
    _set_tune_environment()
    storage = storage if "://" in storage else os.path.abspath(storage)
    directory = f"{storage}/{name}"
    configs = {trial.name: config_of(config, trial) for trial in trials}
    generator = ElasticVariantGenerator(
        [each.workers for each in configs.values()], settings.max_concurrent
    )
    exists = tune.Tuner.can_restore(directory)
    if exists and not resume:
        raise ValueError(f"{directory} holds a sweep already: resume it, or use another name")
    all_callbacks = UnsavedCallbacks([ReportLog(), MoveEndedTrials(), *callbacks])
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            config=config,
            directory=directory,
            stop_file=stop_file,
            packed=packed,
            judge=judge,
        ),
        DRIVER_RESOURCES,
    )
    tuner = _restore(trainable, trials, directory) if exists else None
    if exists and any(_is_longer(f"{directory}/{n}/{RUN}", own) for n, own in configs.items()):
        tuner = None  # Tune would leave finished trials as they are
    if tuner is None:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search([asdict(trial) for trial in trials])},
            tune_config=_tune_config(settings, config.max_steps, generator),
            run_config=tune.RunConfig(
                name=name, storage_path=storage, callbacks=[all_callbacks], verbose=0
            ),
        )
    else:
        _compat.set_process_objects(tuner, [all_callbacks], generator)
    results = {_name_of(result): result for result in _results(tuner.fit())}
    return [
        _outcome(trial, results[trial.name], f"{directory}/{trial.name}", own.max_steps)
        for trial, own in zip(trials, configs.values(), strict=True)
    ]


def _is_longer(directory: str, config: TrainConfig) -> bool:
    """Return whether a trial has more steps than when it started."""
    return (stored_max_steps(directory) or math.inf) < config.max_steps


def _check_metric(config: TrainConfig, settings: SearchSettings) -> None:
    validates = settings.scheduler == "asha" and settings.metric.startswith("val_")
    if validates and not config.data.validation:
        raise ValueError(f"asha compares {settings.metric}: set data.validation")


def _set_tune_environment() -> None:
    """Set the options of Tune that it reads from the environment alone."""
    # A failed trial's error is in its result and in Tune's error.txt; keep it off the terminal.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Only some of the reports have the metric that the scheduler compares.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    # Tune's default loggers would write each report three times, TensorBoard's with an fsync.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


def _tune_config(
    settings: SearchSettings, max_steps: int, generator: ElasticVariantGenerator
) -> tune.TuneConfig:
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
        search_alg=generator,
        # Saves starting a process per trial. A trial that asha stops leaves no process to reuse.
        reuse_actors=settings.scheduler == "none",
        trial_name_creator=_tune_trial_name,
        trial_dirname_creator=_tune_trial_name,
    )


class UnsavedCallbacks(CallbackList):
    """Callbacks that Tune does not save with a sweep.

    Tune pickles its callbacks and restores them on resume. These may hold what can't be pickled,
    and a resumed sweep needs the callbacks of the process that resumes it.
    """

    def __reduce__(self) -> tuple[type["UnsavedCallbacks"], tuple[list[tune.Callback]]]:
        return UnsavedCallbacks, ([],)


def _restore(trainable: Any, trials: Sequence[Trial], directory: str) -> tune.Tuner | None:
    """Return the interrupted sweep, or None if Tune was killed before it saved a usable state.

    In that case the trials still resume from their checkpoints. If fewer trials fit now than ran
    at once before, all of those start, and some wait for workers.

    Raises:
        ValueError: the sweep has trials that are not among `trials`.
    """
    try:
        tuner = tune.Tuner.restore(directory, trainable, resume_errored=True)
        results = tuner.get_results()
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # no state, or a truncated one
        return None
    started = {_name_of(result) for result in _results(results)}
    if unknown := started - {trial.name for trial in trials}:
        some = ", ".join(sorted(unknown)[:3])
        raise ValueError(f"{directory} holds a sweep of other trials ({some}): use another name")
    return tuner


def _outcome(trial: Trial, result: tune.Result, directory: str, max_steps: int) -> TrialResult:
    rows = [] if result.metrics_dataframe is None else result.metrics_dataframe.to_dict("records")
    history = _history(rows)
    # Ray reports the path without its scheme; its last part is enough.
    reported = [Path(row["checkpoint_path"]).name for row in history if row.get("checkpoint_path")]
    # A trial that was stopped may have deleted checkpoints after the last report that Tune saved.
    existing = set(list_checkpoints(f"{directory}/{RUN}"))
    checkpoints = [name for name in reported if name in existing]
    status: Status = "finished"
    error = None
    if result.error is not None:
        status, error = "failed", worker_error(result.error).removeprefix("RuntimeError: ")
    elif not history or not is_over(history[-1], max_steps):
        status = "stopped"
    return TrialResult(
        trial=trial,
        status=status,
        history=history,
        checkpoint=f"{directory}/{RUN}/{checkpoints[-1]}" if checkpoints else None,
        error=error,
        tokens=_total(rows, "tokens"),
        seconds=_total(rows, "time_this_iter_s"),
    )


def _total(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    values = [float(row.get(key, 0)) for row in rows]
    return sum(value for value in values if value == value)  # a frame holds NaN for no value


def _history(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the reports of all attempts in the order of steps; the last one of a repeated step."""
    steps = {}
    for row in rows:
        reported = {
            key: value
            for key, value in row.items()
            if value == value and key not in TUNE_KEYS and not key.startswith("config/")
        }
        steps[int(row["step"])] = reported
    return [steps[step] for step in sorted(steps)]


def _results(grid: tune.ResultGrid) -> list[tune.Result]:
    return [grid[i] for i in range(len(grid))]


def _tune_trial_name(tune_trial: Any) -> str:
    return Trial(**tune_trial.config["trial"]).name


def _name_of(result: tune.Result) -> str:
    return Path(result.path).name
