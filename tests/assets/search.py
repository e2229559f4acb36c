"""A search whose trials are computed by a formula, without training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otr.config import DataConfig, ModelConfig, TrainConfig
from tuning.arms import SearchArm, search_arms
from tuning.searcher import ArmSearcher, SearchPlan
from tuning.settings import SearchSettings
from tuning.space import Trial
from tuning.sweep import TrialResult

STEPS = 8
CONFIG = TrainConfig(
    ModelConfig("model"), DataConfig(("a",), validation=("b",)), max_steps=STEPS, eval_interval=4
)
SPACE = {
    "optim.lr": "loguniform(1e-6, 1e-2)",
    "objective.num_samples": "choice(4, 16, 64)",
    "objective.reward_scale": "loguniform(0.1, 10)",
}
ARMS = [
    Trial("sft", {"objective.name": "sft"}),
    Trial("dft", {"objective.name": "dft"}),
    Trial("otr"),
]


def settings(**changes: Any) -> SearchSettings:
    """Settings of a search by val_nll."""
    return SearchSettings(**{"metric": "val_nll", "space": SPACE, "budget": "30 trials"} | changes)


def arms(chosen: SearchSettings) -> list[SearchArm]:
    """The arms of a search: sft, dft and otr."""
    return search_arms(CONFIG, ARMS, chosen.domains)


def value(trial: Trial, metric: str) -> float:
    """A trial's metric: best at a learning rate of 1e-4, and for otr with many draws."""
    off = abs(math.log10(trial.overrides["optim.lr"]) + 4)
    base = {"sft": 1.0, "dft": 1.1, "otr": 0.9}[trial.arm]
    draws = trial.overrides.get("objective.num_samples", 64)
    learned = base + 0.2 * off + 0.05 * math.log(64 / draws)
    return learned if metric == "val_nll" else 0.5 - 0.1 * math.log10(trial.overrides["optim.lr"])


class FakeSearch:
    """Runs an `ArmSearcher` as Ray Tune does, up to `at_once` trials at a time."""

    def __init__(
        self, directory: Path, chosen: SearchSettings, each: int, at_once: int = 2
    ) -> None:
        own = arms(chosen)
        self.plan = SearchPlan(
            tuple(own), {arm.name: each for arm in own}, seed=7, budget=chosen.limits
        )
        self.settings, self.ended, self.running = chosen, {}, {}
        self.ended: dict[str, Mapping[str, Any]]
        self.running: dict[str, Trial]
        self.trials: list[Trial] = []
        self.searcher = ArmSearcher(
            self.plan,
            chosen,
            directory=str(directory),
            limit=lambda: at_once,
            max_steps=STEPS,
            on_end=lambda trial, report: self.ended.update({trial.name: report}),
            is_stopping=lambda: False,
        )

    def run(self, most: int = 10**6, start: int = 0) -> list[TrialResult]:
        """Start up to `most` trials, and end all of them; Tune's ids are numbers from `start`."""
        results = []
        for i in range(start, start + most):
            tune = self.searcher.suggest(str(i))
            while tune is None:
                results.append(self.end(next(iter(self.running))))
                tune = self.searcher.suggest(str(i))
            if tune == "FINISHED":
                break
            self.running[str(i)] = Trial(**tune["trial"])
            self.trials.append(self.running[str(i)])
        return results + [self.end(each) for each in [*self.running]]

    def end(self, tune_id: str) -> TrialResult:
        """Report a trial's metrics, and end it."""
        trial, history = self.running.pop(tune_id), []
        for step in (STEPS // 2, STEPS):
            report: dict[str, Any] = {"step": step, "tokens": 100.0}
            far = 1 + 0.5 * (STEPS - step) / STEPS
            report |= {name: far * value(trial, name) for name in self.settings.metrics}
            self.searcher.on_trial_result(tune_id, report)
            history.append(report)
        self.searcher.on_trial_complete(tune_id, report)
        return TrialResult(trial, "finished", history, None, None, 200.0, 10.0)
