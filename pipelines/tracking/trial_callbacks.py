"""Recording of trials in MLflow, and the progress line of the training stage."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from otr.config import TrainConfig
from otr.loop.identity import flatten
from pipelines.runtime import console
from pipelines.runtime.console import Stage
from pipelines.tracking.tracker import Tracker
from tuning.settings import ANSWERS, STANDARD_ERROR
from tuning.space import Trial, config_of
from tuning.sweep import TUNE_KEYS, TrialResult

_CURVES = ("loss", "nll", "val_nll", ANSWERS, STANDARD_ERROR)
_OF_THE_MACHINE = ("data_wait", "save/")


class TrialRecorder(Callback):
    """A Ray Tune callback, called in the driver, that records each trial while it trains."""

    def __init__(self, tracker: Tracker, config: TrainConfig, stage: Stage, trials: int) -> None:
        self.tracker, self.config, self.stage, self.trials = tracker, config, stage, trials
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._notes: set[str] = set()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Open the trial's run."""
        ours = _our_trial(trial)
        if not self._started:  # those that an interrupted sweep had finished do not end again
            self._ended |= {_our_trial(each).name for each in trials if each.is_finished()}
        self._start(ours)
        self._say(f"{ours.name} starts")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Log a report, print its note once, and print and tag each restart."""
        ours = _our_trial(trial)
        self.tracker.log(ours.name, report_metrics(result), int(result["step"]))
        if restart := _tag_restart(self.tracker, ours.name, result):
            console.note(f"{ours.name}: {restart}")
        if (note := result.get("note", "")) not in self._notes | {""}:
            self._notes.add(note)
            console.note(f"{ours.name}: {note}")
        text = f"{ours.name} step {result['step']} of {self.config.max_steps}"
        self._say(f"{text}, NLL {result['nll']:.3f}" if "nll" in result else text)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Close the run of a trial that finished or was stopped early."""
        self._end(trial, ok=True)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Close the run of a trial that failed."""
        self._end(trial, ok=False)

    def _start(self, trial: Trial) -> None:
        self.tracker.start_trial(trial.name, trial_params(self.config, trial))
        self._started.add(trial.name)

    def _end(self, trial: TuneTrial, *, ok: bool) -> None:
        ours = _our_trial(trial)
        if ours.name not in self._started:  # it failed before it could start
            self._start(ours)
        self.tracker.end(ours.name, ok=ok)
        self._ended.add(ours.name)
        self._say(f"{ours.name} {'is done' if ok else 'failed'}")

    def _say(self, text: str) -> None:
        self.stage.say(f"{len(self._ended)} of {self.trials} trials done · {text}")


def finalize_trial(tracker: Tracker, config: TrainConfig, result: TrialResult) -> None:
    """Bring the run of a trial that has ended up to date with the trial's results on disk."""
    name = result.trial.name
    history = ((int(report["step"]), report_metrics(report)) for report in result.history)
    tracker.reconcile(name, trial_params(config, result.trial), history)
    for report in result.history:
        _tag_restart(tracker, name, report)
    tracker.tag(name, "status", result.status)
    # A parameter keeps the value that the run began with; the number of steps may have grown.
    tracker.tag(name, "max_steps", str(config_of(config, result.trial).max_steps))
    if result.checkpoint:
        tracker.tag(name, "checkpoint", result.checkpoint)
    tracker.end(name, ok=result.status != "failed")


def trial_params(config: TrainConfig, trial: Trial) -> dict[str, Any]:
    """Return the parameters of a trial's run: every leaf of its config by its dotted name."""
    return {"arm": trial.arm, **flatten(config_of(config, trial))}


def report_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a report by their names in MLflow, without those that Tune adds.

    MLflow's page of a run has a section per prefix, in alphabetical order, and a page of its own
    for ``system/``. So the losses come first.
    """
    others = {*TUNE_KEYS, "step", "tokens"}
    return {
        _mlflow_name(key): float(value)
        for key, value in result.items()
        if isinstance(value, Real) and not isinstance(value, bool) and key not in others
    }


def _mlflow_name(key: str) -> str:
    if key in _CURVES:
        return f"curves/{key}"
    if key.startswith(_OF_THE_MACHINE):
        return f"system/{key}"
    return key if "/" in key else f"training/{key}"


def _tag_restart(tracker: Tracker, trial: str, report: Mapping[str, Any]) -> str:
    """Set a tag of the trial's run if a report is the first one after a restart; return its line.

    Repeating the same command sets the same tag again.
    """
    text = str(report.get("restart", ""))
    if text:
        number, step = int(report["restarts"]), int(report["step"])
        tracker.tag(trial, f"restart_{number}_at_step_{step}", text)
    return text


def _our_trial(trial: TuneTrial) -> Trial:
    return Trial(**trial.config["trial"])
