"""Score trained models while other trials still train, if the cluster has resources for both.

The scores are stored on disk, where the scoring stage finds them. That stage scores whatever is
missing, so an error here is left to it. The engine uses only resources that no unfinished trial can
use.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Condition, Thread
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from evals.settings import EngineSettings
from otr.config import TrainConfig
from otr.loop.progress import is_over
from tuning.amounts import is_enough
from tuning.resources import max_concurrent_trials, total_resources, trial_resources
from tuning.space import Trial

EngineFits = Callable[[int], bool]
"""Return whether the engine fits beside a number of unfinished trials."""


def engine_fits(
    configs: Sequence[TrainConfig],
    max_concurrent: int,
    engine: EngineSettings,
    free: Mapping[str, float],
    cores: float = math.inf,
) -> EngineFits:
    """Return a function for whether the engine fits beside unfinished trials.

    Adapters are never scored during training: served together they take less time than one by one.

    Args:
        configs: the configuration of each trial.
        max_concurrent: most trials at once; 0: as many as fit.
        engine: settings of the engine.
        free: resources that are free before the trials start.
        cores: cores of this machine, if all runs on it: trials and engine share no core.
    """
    if any(config.lora.rank for config in configs):
        return lambda unfinished: False
    try:
        fitting = min(max_concurrent_trials(config.workers, free) for config in configs)
    except ValueError:  # no trial fits, which training reports
        return lambda unfinished: False
    most = min(fitting, max_concurrent or fitting)
    totals = [total_resources(trial_resources(config.workers)) for config in configs]
    per_trial = {kind: max(total[kind] for total in totals) for kind in ("CPU", "GPU")}
    replicas = engine.least_replicas
    needed = {"CPU": replicas, "GPU": replicas * engine.gpus}
    # Ray counts one CPU per replica, however many threads it has.
    threads = 0 if engine.gpus else replicas * engine.threads
    busy = max(config.workers.count * config.workers.cpus for config in configs)

    def fits(unfinished: int) -> bool:
        running = min(unfinished, most)
        if running and cores - running * busy < threads:
            return False
        if running and engine.gpus > 1:  # they have to be on one node, which sums do not show
            return False
        left = {kind: free.get(kind, 0) - running * per_trial[kind] for kind in needed}
        return all(is_enough(left[kind], needed[kind]) for kind in needed)

    return fits


class ScoreDuringTraining(Callback):
    """A Ray Tune callback with a thread that scores; a context manager around training."""

    def __init__(
        self,
        score: Callable[[str, Path], object],
        engine_fits: EngineFits,
        configs: Mapping[str, TrainConfig],
    ) -> None:
        """Prepare the thread.

        Args:
            score: scores a model, given its name and directory.
            engine_fits: see `engine_fits`.
            configs: name of each trial to its configuration.
        """
        self._score, self._engine_fits, self._configs = score, engine_fits, configs
        self._changed = Condition()
        self._queue: list[tuple[str, Path]] = []
        self._checkpoints: dict[str, Path] = {}
        self._ended: set[str] = set()  # ids of trials
        self._has_resources = self._closed = False
        self._thread = Thread(target=self._run, name="score during training", daemon=True)

    def add(self, name: str, model: Path) -> None:
        """Score this model as soon as there are resources."""
        with self._changed:
            self._queue.append((name, model))
            self._changed.notify_all()

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Count the trials that an interrupted sweep had finished: they do not end again."""
        self._have_ended({each.trial_id for each in trials if each.is_finished()})

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Remember the trial's latest checkpoint."""
        if path := result.get("checkpoint_path"):
            self._checkpoints[trial.trial_id] = Path(path)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Score the trial, unless the scheduler stopped it early."""
        name = Trial(**trial.config["trial"]).name
        path = self._checkpoints.get(trial.trial_id)
        if path and is_over(trial.last_result, self._configs[name].max_steps):
            self.add(name, path)
        self._have_ended({trial.trial_id})

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Count the trial as ended."""
        self._have_ended({trial.trial_id})

    def __enter__(self) -> "ScoreDuringTraining":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Start no other model; the scoring stage waits for the one that is being scored."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _have_ended(self, trials: set[str]) -> None:
        with self._changed:
            self._ended |= trials
            self._changed.notify_all()

    def _run(self) -> None:
        while (model := self._next()) is not None:
            try:
                self._score(*model)
            except Exception:  # the scoring stage runs into it again, and reports it
                return

    def _next(self) -> tuple[str, Path] | None:
        """Wait for a model to score; return None when training has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._queue and self._may_start()))
            return None if self._closed else self._queue.pop(0)

    def _may_start(self) -> bool:
        # Once the engine runs, it keeps its resources.
        unfinished = len(self._configs) - len(self._ended)
        self._has_resources = self._has_resources or self._engine_fits(unfinished)
        return self._has_resources
