"""Learning-rate schedules: a linear warm-up, then one of SCHEDULES."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from otr.config import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate after the warm-up."""

    source: str
    """Where it is described."""
    share: Callable[[float, OptimConfig], float]
    """(done, config) -> share of the peak rate; `done` is 0 after the warm-up, 1 at the end."""


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """Return the rate of the optimizer step number `step` (from 0)."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    return config.lr * SCHEDULES[config.schedule].share(done, config)


def _cosine(done: float, config: OptimConfig) -> float:
    return _above_final(0.5 * (1 + math.cos(math.pi * done)), config)


def _linear(done: float, config: OptimConfig) -> float:
    return _above_final(1 - done, config)


def _constant(done: float, config: OptimConfig) -> float:
    return 1.0


def _wsd(done: float, config: OptimConfig) -> float:
    """Return the share of warm-up, stable, decay: 1, then down by 1 - sqrt."""
    decayed = (done - (1 - config.decay_share)) / config.decay_share
    return 1.0 if decayed <= 0 else _above_final(1 - math.sqrt(decayed), config)


def _above_final(part: float, config: OptimConfig) -> float:
    """Return the share that is this part of the way from `final_lr` up to the peak."""
    return config.final_lr + (1 - config.final_lr) * part


SCHEDULES = {
    "cosine": Schedule("arXiv:1608.03983, without restarts", _cosine),
    "linear": Schedule("arXiv:2310.07831", _linear),
    "constant": Schedule("transformers.get_constant_schedule_with_warmup", _constant),
    "wsd": Schedule("arXiv:2404.06395; the form of the decay: arXiv:2405.18392", _wsd),
}
"""By the names of `OptimConfig.schedule`."""
