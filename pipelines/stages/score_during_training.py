"""Scoring what is trained already while the rest still trains, where the cluster has room for both.

In: the models as they become ready, and how many trials are left. Out: their scores on disk, where
the scoring stage finds them. That stage needs none of this, so an error is left to it: it meets it
again. The engine's place is what the trials that are still to run can't take.
"""

from collections.abc import Callable, Mapping
from threading import Condition, Thread
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from pipelines.config.presets import SweepConfig
from tuning.resources import max_concurrent_trials, total_resources, trial_resources
from tuning.space import Trial, config_of

HasRoom = Callable[[int], bool]


def room(config: SweepConfig, free: Mapping[str, float]) -> HasRoom:
    """Whether the engine fits beside a number of unfinished trials, on what is free before them.

    Adapters are never scored ahead: served together they take less time than one by one.
    """
    if any(config_of(config.train, trial).lora.rank for trial in config.trials):
        return lambda unfinished: False
    workers = [config_of(config.train, trial).workers for trial in config.trials]
    try:
        fitting = min(max_concurrent_trials(each, free) for each in workers)
    except ValueError:  # not one trial fits: training tells it
        return lambda unfinished: False
    at_once = min(fitting, config.search.max_concurrent or fitting)
    totals = [total_resources(trial_resources(each)) for each in workers]
    trial = {kind: max(each[kind] for each in totals) for kind in ("CPU", "GPU")}
    replicas = config.engine.least_replicas
    engine = {"CPU": replicas, "GPU": replicas * config.engine.gpus}

    def fits(unfinished: int) -> bool:
        running = min(unfinished, at_once)
        return all(free.get(kind, 0) - running * trial[kind] >= engine[kind] for kind in engine)

    return fits


class Ahead(Callback):
    """A Ray Tune callback, and the thread that scores; a context manager around training."""

    def __init__(
        self, score: Callable[[str, str], object], has_room: HasRoom, config: SweepConfig
    ) -> None:
        self._score, self._has_room, self._config = score, has_room, config
        self._changed = Condition()
        self._ready: list[tuple[str, str]] = []
        self._checkpoints: dict[str, str] = {}
        self._unfinished = len(config.trials)
        self._begun = self._closed = False  # begun: the engine has its place
        self._thread = Thread(target=self._run, name="scoring ahead", daemon=True)

    def ready(self, name: str, path: str) -> None:
        """Score this model when there is room."""
        with self._changed:
            self._ready.append((name, path))
            self._changed.notify_all()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if path := result.get("checkpoint_path"):
            self._checkpoints[trial.trial_id] = path

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        ours = Trial(**trial.config["trial"])
        path = self._checkpoints.get(trial.trial_id)
        # What was stopped early is not scored.
        if path and trial.last_result["step"] >= config_of(self._config.train, ours).max_steps:
            self.ready(ours.name, path)
        self._ended()

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._ended()

    def __enter__(self) -> "Ahead":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Begin no other model; for the one that is being scored the stage waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _ended(self) -> None:
        with self._changed:
            self._unfinished -= 1
            self._changed.notify_all()

    def _run(self) -> None:
        while (model := self._next()) is not None:
            try:
                self._score(*model)
            except Exception:  # the scoring stage meets it again, and tells it
                return

    def _next(self) -> tuple[str, str] | None:
        """A model to be scored; None when training has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._ready and self._may_begin()))
            return None if self._closed else self._ready.pop(0)

    def _may_begin(self) -> bool:
        self._begun = self._begun or self._has_room(self._unfinished)
        return self._begun
