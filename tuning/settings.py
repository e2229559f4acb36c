"""How the trials of a sweep are scheduled, and what is searched before it; without Ray."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from otr.config import TrainConfig
from otr.hints import did_you_mean
from tuning.budget import Budget, parse_budget
from tuning.domains import Domain, parse_space

ANSWERS, STANDARD_ERROR = "answers", "answers_se"
"""Metrics of reports: share of right answers to `SearchSettings.benchmark`, its standard error."""

VALIDATION = ("val_token_accuracy", "val_exact", "val_nll", "val_kl_to_base")
"""Metrics of the validation data (`otr.loop.evaluate`)."""


def lower_is_better(metric: str) -> bool:
    """Return whether lower values of a metric are better: of losses, NLLs and KL divergences."""
    return not {"loss", "nll", "kl"}.isdisjoint(re.split(r"[_/]", metric))


@dataclass(frozen=True)
class SearchSettings:
    """How the trials are scheduled, and what is searched before them."""

    scheduler: Literal["none", "asha", "median"] = "none"
    """`asha` stops the worse trials early; `median` stops a trial whose best value is worse than
    the median of the others' means up to the same step; `none` runs every trial to the end. With a
    search, it is the search's trials that are stopped."""
    metric: str = "val_token_accuracy"
    """Metric that the search and the scheduler compare: any that trials report, such as answers
    (see `benchmark`), val_token_accuracy, val_exact or val_nll. Lower is better if a word of its
    name is loss, nll or kl, higher otherwise."""
    benchmark: str = ""
    """Benchmark, such as gsm8k:items=1-200, that each trial is scored on at each evaluation: the
    metric `answers` is the share of right answers. With a search, it is the search's trials that
    are scored. It may share no item with --benchmarks, which report the result."""
    grace_steps: int = 100
    """Optimizer steps that every trial takes before the scheduler can stop it."""
    max_concurrent: int = 0
    """Maximum number of trials at once; 0: as many as fit on the cluster."""
    space: dict[str, str] = field(default_factory=dict, hash=False)
    """Settings to search before the sweep, each with its values: choice(4,16,64), uniform(0,1),
    loguniform(1e-6,1e-4), quniform(0,1,0.25), or randint(1,8), both ends included. A setting of an
    objective is searched in the arms that have it, all others in every arm. The best setting of
    each arm is then trained with the seeds of the sweep."""
    budget: str = ""
    """What the search may cost, all arms together: trials, time or tokens, or several of them, as
    in "40 trials, 6 h, 200M tokens". Without a number of trials, as many as fit."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Which settings are tried. `tpe`: Optuna's tree-structured Parzen estimator, which tries
    settings near the better ones. `random`: independent draws. `grid`: every combination of listed
    values."""
    retain: str = ""
    """Second metric of the search, for what the model retains. `tpe` then looks for settings that
    are best in both metrics, and the report shows them. The sweep trains the setting that is best
    by `metric`."""

    def __post_init__(self) -> None:
        if self.scheduler not in ("none", "asha", "median"):
            raise ValueError(
                f"search.scheduler is {self.scheduler!r}: use 'none', 'asha' or 'median'"
            )
        if ANSWERS in self.metrics and not self.benchmark:
            raise ValueError(
                f"search.{'metric' if self.metric == ANSWERS else 'retain'} is {ANSWERS!r}, but "
                "search.benchmark is empty: say what to answer, as in --search.benchmark "
                "gsm8k:items=1-200"
            )
        if self.grace_steps < 1:
            raise ValueError(f"search.grace_steps is {self.grace_steps}: use at least 1")
        if self.max_concurrent < 0:
            raise ValueError(
                f"search.max_concurrent is {self.max_concurrent}: use 0 (as many trials as fit) or "
                "more"
            )
        self._check_search()

    def _check_search(self) -> None:
        if self.sampler not in ("tpe", "random", "grid"):
            raise ValueError(f"search.sampler is {self.sampler!r}: use 'tpe', 'random' or 'grid'")
        domains, budget = self.domains, self.limits
        if not domains:
            usual = {"budget": "", "retain": "", "sampler": "tpe"}
            given = [name for name, value in usual.items() if getattr(self, name) != value]
            if given:
                raise ValueError(
                    f"search.{given[0]} is {getattr(self, given[0])!r}, but nothing is searched: "
                    'give --search "optim.lr=loguniform(1e-6,1e-4)" or the like'
                )
            return
        if self.sampler == "grid":
            endless = [key for key, domain in domains.items() if domain.listed() is None]
            if endless:
                raise ValueError(
                    f"search.sampler is 'grid', but {endless[0]}={domains[endless[0]].text} has no "
                    "list of values: use choice(...), quniform or randint, or another sampler"
                )
            if budget.trials:
                raise ValueError(
                    f"search.budget is {self.budget!r}, but a grid has its own number of trials: "
                    "leave out the number of trials"
                )
        elif budget == Budget():
            raise ValueError(
                'a search needs a budget: give --budget "40 trials", "6 h" or "200M tokens"'
            )
        if self.retain == self.metric:
            raise ValueError(f"search.retain is {self.retain!r}, the metric itself: use another")
        if self.retain and self.scheduler != "none":
            raise ValueError(
                f"search.scheduler is {self.scheduler!r} with search.retain {self.retain!r}: it "
                "would stop trials by search.metric alone; use 'none'"
            )

    @property
    def domains(self) -> Mapping[str, Domain]:
        """The values of each setting of the space; a ValueError if they can't be read."""
        return parse_space(self.space)

    @property
    def limits(self) -> Budget:
        """The budget; a ValueError if it can't be read."""
        return parse_budget(self.budget)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the search compares."""
        return (self.metric, self.retain) if self.retain else (self.metric,)


def check_metrics(config: TrainConfig, settings: SearchSettings) -> None:
    """Check that the metrics by which trials are compared can be measured.

    Raises:
        ValueError: one of them needs validation data, and there is none, or is none of its metrics.
    """
    compares = "the search" if settings.space else settings.scheduler
    of_validation = [name for name in settings.metrics if name.startswith("val_")]
    for name in of_validation if compares != "none" else ():
        if name not in VALIDATION:
            raise ValueError(
                f"{compares} compares trials by {name}, which is no metric of validation data: "
                f"{did_you_mean(name, VALIDATION)}"
            )
    if compares != "none" and of_validation and not config.data.validation:
        raise ValueError(
            f"{compares} compares trials by {of_validation[0]}, which is measured on validation "
            "data, and there is none: give --validation, or another --search.metric"
        )


def with_scored_checkpoints(config: TrainConfig) -> TrainConfig:
    """Return the config with a checkpoint at each evaluation too, for it to be scored."""
    interval = math.gcd(config.checkpoint_interval, config.eval_interval)  # gcd(0, n) is n
    return replace(config, checkpoint_interval=interval)
