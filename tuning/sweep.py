"""Sweeps: trials side by side under Ray Tune, each a Ray Train run.

Everything of a trial lies in `<storage>/<name>/<trial name>/`. A trial that fails does not end the
others.
"""

import logging
import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.callback import CallbackList
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm

from otr.config import TrainConfig
from otr.loop.progress import is_over
from otr.training.checkpoint_store import list_checkpoints
from otr.training.driver import stored_max_steps, worker_error
from tuning import _compat
from tuning.concurrency import ElasticVariantGenerator, TrialLimit
from tuning.ended_trials import MoveEndedTrials
from tuning.judge import Judge
from tuning.report_log import ReportLog
from tuning.schedulers import Asha, Fifo, Median
from tuning.settings import ANSWERS, SearchSettings, check_metrics, lower_is_better
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


def run(
    experiment: "Experiment", trials: Sequence[Trial], *, resume: bool = False
) -> list[TrialResult]:
    """Run every trial, or with `resume` continue an interrupted sweep.

    Args:
        experiment: what the trials have in common.
        trials: at least one; their names differ.
        resume: continue the sweep of this storage and name, or start it if there is none. Finished
            trials stay, interrupted ones resume from their last checkpoint, failed ones run again.
            If `max_steps` is larger than before, all trials go on from their last checkpoints.

    Returns:
        One result per trial, in the order of `trials`.

    Raises:
        ValueError: the sweep exists and `resume` is off, it has other trials, or the cluster is too
            small for one trial.
    """
    check_names(trials)
    config, settings, directory = experiment.config, experiment.settings, experiment.directory
    check_metrics(config, settings)
    judged = experiment.judge is not None
    assert judged or settings.scheduler == "none" or ANSWERS not in settings.metrics, "no judge"
    configs = {trial.name: config_of(config, trial) for trial in trials}
    limit = TrialLimit([each.workers for each in configs.values()], settings.max_concurrent)
    exists = tune.Tuner.can_restore(directory)
    if exists and not resume:
        raise ValueError(f"{directory} holds a sweep already: resume it, or use another name")
    tuner = _restore(experiment, trials) if exists else None
    if exists and any(_is_longer(f"{directory}/{n}/{RUN}", own) for n, own in configs.items()):
        tuner = None  # Tune would leave finished trials as they are
    space = {"trial": tune.grid_search([asdict(trial) for trial in trials])}
    results = experiment.fit(ElasticVariantGenerator(limit), tuner, space)
    by_name = {_name_of(result): result for result in results}
    return [
        outcome_of(trial, by_name[trial.name], f"{directory}/{trial.name}", own.max_steps)
        for trial, own in zip(trials, configs.values(), strict=True)
    ]


@dataclass(frozen=True)
class Experiment:
    """A sweep, or a search, as an experiment of Ray Tune."""

    config: TrainConfig
    """The config that the trials override."""
    settings: SearchSettings
    """How the trials are scheduled; of a search, also sampler and metrics."""
    storage: str
    """Directory or URI that every node reaches; of a search, a directory."""
    name: str
    """Name of the experiment below `storage`."""
    callbacks: Sequence[tune.Callback] = ()
    """Callbacks of Ray Tune, called in this process. `tune_trial.config["trial"]` is the trial as a
    dict {arm, overrides, seed}; `tune_trial.trial_id` stays the same on resume."""
    stop_file: str | None = None
    """Once this file exists, each trial saves and fails, and can be resumed."""
    packed: str | None = None
    """Directory or URI of the packed stores of corpora; by default within the experiment's."""
    judge: Judge | None = None
    """Scores checkpoints on `settings.benchmark`; see `tuning.judge`."""

    def __post_init__(self) -> None:
        _set_tune_environment()
        if "://" not in self.storage:
            object.__setattr__(self, "storage", os.path.abspath(self.storage))

    @property
    def directory(self) -> str:
        """Directory of the experiment, a path or URI."""
        return f"{self.storage}/{self.name}"

    def restored(self, *, failed: bool = True) -> tune.Tuner | None:
        """Return the interrupted experiment; None if Tune was killed before it saved its state.

        In that case the trials still resume from their checkpoints. If fewer trials fit now than
        ran at once before, all of those start, and some wait for workers.

        Args:
            failed: run failed trials again.
        """
        try:
            tuner = tune.Tuner.restore(self.directory, self._trainable(), resume_errored=failed)
            tuner.get_results()
        except (RuntimeError, EOFError, pickle.UnpicklingError):  # no state, or a truncated one
            return None
        return tuner

    def fit(
        self,
        search: SearchAlgorithm,
        tuner: tune.Tuner | None = None,
        space: dict[str, Any] | None = None,
        num_samples: int = 1,
    ) -> list[tune.Result]:
        """Run the experiment, or `tuner`, which is the restored one, to its end.

        Args:
            search: makes the trials.
            tuner: the restored experiment.
            space: Tune's search space.
            num_samples: number of trials that `search` makes, or of each point of `space`.
        """
        callbacks = UnsavedCallbacks([ReportLog(), MoveEndedTrials(), *self.callbacks])
        if tuner is None:
            tune_config = _tune_config(self.settings, self.config.max_steps, search)
            tuner = tune.Tuner(
                self._trainable(),
                param_space=space or {},
                tune_config=replace(tune_config, num_samples=num_samples),
                run_config=tune.RunConfig(
                    name=self.name, storage_path=self.storage, callbacks=[callbacks], verbose=0
                ),
            )
        else:
            _compat.set_process_objects(tuner, [callbacks], search)
        return results_of(tuner.fit())

    def _trainable(self) -> Any:
        function = tune.with_parameters(
            run_trial,
            config=self.config,
            directory=self.directory,
            stop_file=self.stop_file,
            packed=self.packed,
            judge=self.judge,
        )
        return tune.with_resources(function, DRIVER_RESOURCES)


def _is_longer(directory: str, config: TrainConfig) -> bool:
    """Return whether a trial has more steps than when it started."""
    return (stored_max_steps(directory) or math.inf) < config.max_steps


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
    settings: SearchSettings, max_steps: int, search: SearchAlgorithm
) -> tune.TuneConfig:
    scheduler: TrialScheduler = Fifo()
    common: dict[str, Any] = {
        "time_attr": "step",
        "metric": settings.metric,
        "mode": "min" if lower_is_better(settings.metric) else "max",
        "grace_period": min(settings.grace_steps, max_steps),
    }
    if settings.scheduler == "asha":
        scheduler = Asha(max_t=max_steps, **common)
    elif settings.scheduler == "median":
        scheduler = Median(**common)
    return tune.TuneConfig(
        scheduler=scheduler,
        search_alg=search,
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


def _restore(experiment: Experiment, trials: Sequence[Trial]) -> tune.Tuner | None:
    """Return the interrupted sweep, or None (see `Experiment.restored`).

    Raises:
        ValueError: the sweep has trials that are not among `trials`.
    """
    tuner = experiment.restored()
    if tuner is None:
        return None
    started = {_name_of(result) for result in results_of(tuner.get_results())}
    if unknown := started - {trial.name for trial in trials}:
        some = ", ".join(sorted(unknown)[:3])
        raise ValueError(
            f"{experiment.directory} holds a sweep of other trials ({some}): use another name"
        )
    return tuner


def outcome_of(trial: Trial, result: tune.Result, directory: str, max_steps: int) -> TrialResult:
    """Return the outcome of a trial, whose files are in `directory`."""
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


def results_of(grid: tune.ResultGrid) -> list[tune.Result]:
    """Return the results of an experiment as a list."""
    return [grid[i] for i in range(len(grid))]


def _tune_trial_name(tune_trial: Any) -> str:
    return Trial(**tune_trial.config["trial"]).name


def _name_of(result: tune.Result) -> str:
    return Path(result.path).name
