"""How the trials of a sweep are scheduled. This module does not import Ray."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from otr.config import TrainConfig

ANSWERS, STANDARD_ERROR = "answers", "answers_se"
"""Metrics of reports: share of right answers to `SearchSettings.benchmark`, its standard error."""


@dataclass(frozen=True)
class SearchSettings:
    """How the trials are scheduled."""

    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops the worse trials early; `none` runs every trial to the end."""
    metric: str = "val_exact"
    """Metric that asha compares, such as answers (see `benchmark`), val_exact, val_nll or
    val_token_accuracy. Lower is better for names that end in loss or nll, higher for all others."""
    benchmark: str = ""
    """Benchmark, such as gsm8k:items=1-200, that each trial is scored on at each evaluation: the
    metric `answers` is the share of right answers. It may share no item with --benchmarks, which
    report the result."""
    grace_steps: int = 100
    """Optimizer steps that every trial takes before asha can stop it."""
    max_concurrent: int = 0
    """Maximum number of trials at once; 0: as many as fit on the cluster."""

    def __post_init__(self) -> None:
        if self.scheduler not in ("none", "asha"):
            raise ValueError(f"scheduler {self.scheduler!r}: use 'none' or 'asha'")
        if self.metric == ANSWERS and not self.benchmark:
            raise ValueError(
                f"search.metric is {ANSWERS!r}, but search.benchmark is empty: say what to answer, "
                "as in --search.benchmark gsm8k:items=1-200"
            )
        if self.grace_steps < 1 or self.max_concurrent < 0:
            raise ValueError(
                f"grace_steps is {self.grace_steps}, max_concurrent {self.max_concurrent}: "
                "use at least 1 and 0"
            )


def with_scored_checkpoints(config: TrainConfig) -> TrainConfig:
    """Return the config with a checkpoint at each evaluation too, for it to be scored."""
    interval = math.gcd(config.checkpoint_interval, config.eval_interval)  # gcd(0, n) is n
    return replace(config, checkpoint_interval=interval)
