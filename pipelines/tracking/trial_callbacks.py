"""What the driver does while trials train: record them in MLflow and show how far they are.

In: Ray Tune's calls. Out: MLflow runs and the line of the training stage.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from otr.config import TrainConfig
from otr.loop.identity import flat
from pipelines.runtime import console
from pipelines.runtime.console import Stage
from pipelines.tracking.tracker import Tracker
from tuning.space import Trial, config_of
from tuning.sweep import TUNE_KEYS, TrialResult


class Watcher(Callback):
    """A Ray Tune callback, called in the driver."""

    def __init__(self, tracker: Tracker, config: TrainConfig, stage: Stage, trials: int) -> None:
        self.tracker, self.config, self.stage, self.trials = tracker, config, stage, trials
        self._started: set[str] = set()
        self._ended: set[str] = set()
        self._notes: set[str] = set()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        ours = _ours(trial)
        self._open(ours)
        self._say(f"{ours.name} starts")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        ours = _ours(trial)
        self.tracker.log(ours.name, metrics_of(result), int(result["step"]))
        if (note := result.get("note", "")) not in self._notes | {""}:
            self._notes.add(note)
            console.note(f"{ours.name}: {note}")
        text = f"{ours.name} step {result['step']} of {self.config.max_steps}"
        self._say(f"{text}, NLL {result['nll']:.3f}" if "nll" in result else text)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._end(trial, ok=True)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._end(trial, ok=False)

    def _end(self, trial: TuneTrial, *, ok: bool) -> None:
        ours = _ours(trial)
        name = ours.name
        if name not in self._started:  # it failed before it could start
            self._open(ours)
        self.tracker.end(name, ok=ok)
        self._ended.add(name)
        self._say(f"{name} {'is done' if ok else 'failed'}")

    def _open(self, trial: Trial) -> None:
        self.tracker.start_trial(trial.name, params(config_of(self.config, trial), trial))
        self._started.add(trial.name)

    def _say(self, text: str) -> None:
        self.stage.say(f"{len(self._ended)} of {self.trials} trials done · {text}")


def settle(tracker: Tracker, config: TrainConfig, result: TrialResult) -> None:
    """See that the run of a trial says how it ended; in a store that has none, write it anew."""
    name = result.trial.name
    history = ((int(report["step"]), metrics_of(report)) for report in result.history)
    tracker.restore(name, params(config_of(config, result.trial), result.trial), history)
    tracker.tag(name, "status", result.status)
    if result.checkpoint:
        tracker.tag(name, "checkpoint", result.checkpoint)
    tracker.end(name, ok=result.status != "failed")


def params(config: TrainConfig, trial: Trial) -> dict[str, Any]:
    """What MLflow keeps of a trial: every leaf of its config under its dotted name."""
    return {"arm": trial.arm, **flat(config)}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report, without Tune's own."""
    own = {*TUNE_KEYS, "step"}
    return {
        key: float(value)
        for key, value in result.items()
        if isinstance(value, Real) and not isinstance(value, bool) and key not in own
    }


def _ours(trial: TuneTrial) -> Trial:
    return Trial(**trial.config["trial"])
