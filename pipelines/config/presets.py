"""The configuration of a sweep, and the presets: functions that return one.

In: nothing. Out: a `SweepConfig`. Paths and benchmarks that begin with ``builtin:`` stand for files
that `pipelines.builtin.corpus` writes when they are first needed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tyro

from evals.settings import EngineSettings
from otr.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipelines.builtin.corpus import BENCHMARKS
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, grid

LEARNING_RATES = {
    "sft": 5e-4,
    "dft": 5e-4,
    "otr-expected": 5e-4,
    "otr-k16": 5e-4,
    "otr-k256": 5e-4,
}
"""Of each arm of `builtin`: of 2e-4, 5e-4 and 1e-3 the best in trials of full length, or level with
it (LOG.md, 2026-11-24)."""

_OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"objective.name": "sft"},
    "dft": {"objective.name": "dft"},
    "otr-expected": {"objective.estimator": "expected"},
    "otr-k16": {"objective.num_samples": 16},
    "otr-k256": {"objective.num_samples": 256},
}


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: what to train, in which arms, and how to score what comes out."""

    name: str
    """Of the run's directory under `output`; the same name again continues the run."""
    train: TrainConfig
    """What all trials share."""
    trials: tyro.conf.Suppress[tuple[Trial, ...]]
    """What each trial changes in `train`."""
    search: SearchSettings = field(default_factory=SearchSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    benchmarks: tuple[str, ...] = ()
    """Names (``gsm8k``; ``gsm8k-base`` for a base model, ``gsm8k@16`` for the mean of 16 answers),
    ``file:PATH.jsonl``, ``class:MODULE:CLASS`` or ``builtin:NAME``. The first is the target: it
    ranks the arms. Those not called target-... measure what the model retains."""
    benchmark_dir: str = ""
    """Of the published benchmark files; empty: $OTR_BENCHMARKS."""
    max_items: int = 0
    """Of each benchmark, spread evenly over it; 0: all."""
    output: str = "runs"
    """Directory of the runs, the MLflow store and the built-in files."""

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("/\\ "):
            raise ValueError(f"name is {self.name!r}: use letters, digits, '-', '_' and '.'")
        if not self.trials:
            raise ValueError("no trial: name at least one arm and one seed")
        check_names(self.trials)
        if not self.benchmarks:
            raise ValueError("no benchmark: name at least one to score the trials with")
        if self.max_items < 0:
            raise ValueError(f"max_items is {self.max_items}: use 0 (all) or more")


def builtin() -> SweepConfig:
    """The main job on the built-in world: each arm at its own learning rate."""
    return SweepConfig(
        name="builtin",
        train=TrainConfig(
            model=ModelConfig("builtin:base"),
            data=DataConfig(
                ("builtin:train",), validation=("builtin:validation",), sequence_length=256
            ),
            optim=OptimConfig(lr=3e-4),
            max_steps=120,
            global_batch_size=8,
            micro_batch_size=8,
            eval_interval=40,
        ),
        trials=_arms(_OBJECTIVES, seeds=(0, 1)),
        benchmarks=tuple(f"builtin:{name}" for name in BENCHMARKS),
        max_items=100,
    )


def study() -> SweepConfig:
    """Which settings matter: K, mismatch reward, temperature and learning rate under ASHA."""
    seeds, rates = (0, 1), {"optim.lr": [2e-4, 5e-4]}
    shape = {"objective.mismatch_reward": [-1.0, -0.1, 0.0], "objective.temperature": [1.0, 1.3]}
    settings = "b{mismatch_reward}-t{temperature}-lr{lr}"
    draws = {"objective.num_samples": [1, 4, 16, 64, 256]}
    expected = {"objective.estimator": "expected"}
    return replace(
        builtin(),
        name="study",
        trials=(
            *grid("sft-lr{lr}", seeds, **_OBJECTIVES["sft"], **rates),
            *grid("dft-lr{lr}", seeds, **_OBJECTIVES["dft"], **rates),
            *grid(f"otr-expected-{settings}", seeds, **expected, **shape, **rates),
            *grid(f"otr-k{{num_samples}}-{settings}", seeds, **draws, **shape, **rates),
        ),
        # Before the rate decays a high one looks worse than it ends.
        search=SearchSettings(scheduler="asha", grace_steps=80),
    )


def debug() -> SweepConfig:
    """The whole system in a few steps and items: for tests."""
    config = builtin()
    return replace(
        config,
        name="debug",
        train=replace(config.train, max_steps=6, log_interval=2, eval_interval=3),
        trials=_arms(("sft", "otr-k16"), seeds=(0,)),
        benchmarks=("builtin:target-heldout", "builtin:retained-code"),
        max_items=8,
    )


def _arms(names: Iterable[str], seeds: Sequence[int]) -> tuple[Trial, ...]:
    return tuple(
        trial
        for name in names
        for trial in grid(name, seeds, **_OBJECTIVES[name], **{"optim.lr": LEARNING_RATES[name]})
    )


PRESETS: dict[str, Callable[[], SweepConfig]] = {
    "builtin": builtin,
    "study": study,
    "debug": debug,
}
