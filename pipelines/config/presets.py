"""`SweepConfig`, and the presets: functions that return one.

Paths and benchmarks that begin with `builtin:` stand for files that `pipelines.builtin.corpus`
writes when they are first needed.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from evals.settings import EngineSettings
from otr.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from otr.hints import counted, did_you_mean
from otr.loss import objective
from otr.loss.objective import Objective
from pipelines import trackers
from pipelines.builtin.corpus import BENCHMARKS
from tuning.arms import SearchArm, most_trials, search_arms
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, config_of, grid

PresetName = Literal["builtin", "family", "gsm8k", "study", "debug"]

LEARNING_RATES = {
    "sft": 5e-4,
    "dft": 5e-4,
    "otr-expected": 5e-4,
    "otr-k16": 5e-4,
    "otr-k256": 5e-4,
}
"""Learning rate of each arm of `builtin`: the best of 2e-4, 5e-4 and 1e-3 in trials of full length,
or level with the best (LOG.md, 2026-11-24)."""

GSM8K_LR = 5e-5
"""Learning rate of all arms of `gsm8k`."""

ASFT_KL_WEIGHT = 0.1
"""Weight of the KL of the arm `asft`: the default of its authors' code."""

FAMILY_LR = 5e-4
"""Learning rate of all arms of `family`: the best one of all arms of `builtin`."""

SEARCH_ARMS = ("sft", "dft", "otr")
"""Arms of a search that names none."""
CONTROL = "sft"
"""Arm that every search has."""


@dataclass(frozen=True)
class SweepConfig:
    """A sweep: what to train, in which arms, and how to score the results."""

    name: str
    """Name of the run and of its directory in --output; the same name again resumes the run."""
    train: TrainConfig
    """The settings that all trials share."""
    trials: tuple[Trial, ...]
    """The trials, each with its changes to `train`."""
    search: SearchSettings = field(default_factory=SearchSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    benchmarks: tuple[str, ...] = ()
    """Names of benchmarks: `gsm8k`; `gsm8k-base` for a base model; `gsm8k@16` for the mean of 16
    answers; `gsm8k:max_tokens=512,temperature=0.7,top_p=0.95,thinking=true` with options;
    `file:PATH.jsonl`, `class:MODULE:CLASS` or `builtin:NAME`. The first is the target: it ranks the
    arms. The others measure what the model retains, unless their name begins with target-."""
    benchmark_dir: str = ""
    """Directory of the published benchmark files. Empty: the directory that $OTR_BENCHMARKS names,
    or else files from the Hugging Face hub."""
    max_items: int = 0
    """Number of items of each benchmark to use, spread evenly over it; 0: all."""
    output: str = "runs"
    """Directory in which the runs, the MLflow store and the built-in files are written."""
    epochs: float = 0.0
    """Passes over the training data, from which the number of steps follows. Give this or
    --max-steps, not both."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Options that were not given, and the reason for the value that was chosen for each; empty
    until it is (see `pipelines.config.defaults`)."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the metrics, parameters and scores of each trial in addition to MLflow:
    `tensorboard` (event files in the run's directory), `wandb` (Weights & Biases)."""

    def __post_init__(self) -> None:
        if self.name in ("", ".", "..") or set(self.name) & set("/\\ "):
            raise ValueError(f"name is {self.name!r}: use letters, digits, '-', '_' and '.'")
        if not self.trials:
            raise ValueError("no trials: name at least one arm and one seed")
        check_names(self.trials)
        if not self.benchmarks:
            raise ValueError("no benchmark: name at least one to score the trials with")
        if self.max_items < 0:
            raise ValueError(f"max_items is {self.max_items}: use 0 (all) or more")
        if not 0 <= self.epochs < math.inf:
            raise ValueError(f"epochs is {self.epochs}: use a number > 0")
        trackers.check_names(self.trackers)


def check_trials(config: SweepConfig) -> str:
    """Check that each trial's configuration is valid; return how many there are.

    Raises:
        ValueError: an arm has an unknown key or a value that its field refuses.
    """
    for trial in config.trials:
        try:
            config_of(config.train, trial)
        except ValueError as error:
            raise ValueError(f"arms.{trial.arm}: {error}") from error
    arms = {trial.arm for trial in config.trials}
    return f"{counted(len(config.trials), 'trial')} in {counted(len(arms), 'arm')}"


def arms_of_search(config: SweepConfig) -> list[SearchArm]:
    """Return the arms of the search before the sweep, each with those of the settings that it has.

    Raises:
        ValueError: see `tuning.arms.search_arms`.
    """
    return search_arms(config.train, config.trials, config.search.domains)


def size_of_search(config: SweepConfig) -> int:
    """Return the most trials that the search before the sweep has; 0 if nothing is searched."""
    if not config.search.space:
        return 0
    return sum(most_trials(arms_of_search(config), config.search).values())


def builtin() -> SweepConfig:
    """Compare five objectives on the built-in world, each at its best learning rate of three."""
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
        trials=_arms(LEARNING_RATES, seeds=(0, 1)),
        # Answers end far below; the identity of their stored scores has this length.
        engine=EngineSettings(
            dtype="float32", max_model_len=1024, threads=1, kv_cache_gib=1.0, concurrency=64
        ),
        benchmarks=tuple(f"builtin:{name}" for name in BENCHMARKS),
        max_items=100,
    )


def family() -> SweepConfig:
    """Compare all objectives on the built-in world, at one learning rate."""
    return replace(
        builtin(),
        name="family",
        trials=_arms(_every_arm(), seeds=(0, 1), lr=FAMILY_LR),
    )


def gsm8k() -> SweepConfig:
    """Fine-tune a real model, SmolLM2-135M-Instruct, on GSM8K; see what it learns and forgets.

    One learning rate for all arms, not the best one of each: it was never searched.
    """
    return SweepConfig(
        name="gsm8k",
        train=TrainConfig(
            model=ModelConfig("builtin:smollm2", dtype="bfloat16"),
            data=DataConfig(
                ("builtin:gsm8k-train",),
                validation=("builtin:gsm8k-validation",),
                sequence_length=512,
            ),
            optim=OptimConfig(lr=GSM8K_LR),
            max_steps=100,
            global_batch_size=4,
            micro_batch_size=4,
            eval_interval=50,
            checkpoint_interval=50,
        ),
        trials=_arms(("sft", "dft", "otr-k256"), seeds=(0,), lr=GSM8K_LR),
        engine=EngineSettings(dtype="bfloat16", max_model_len=1024),
        # A model of this size often repeats itself up to the limit, which costs time.
        benchmarks=(
            "gsm8k",
            "mmlu:max_tokens=256",
            "bbh:max_tokens=256",
            "humaneval:max_tokens=512",
            "arc_challenge:max_tokens=256",
        ),
        max_items=100,
        # On this machine: bfloat16 where it is fast, and the cores shared by the trials.
        chosen=dict.fromkeys(
            ("train.model.dtype", "engine.dtype", "train.workers.cpus", "search.max_concurrent"), ""
        ),
    )


def study() -> SweepConfig:
    """Search K, mismatch reward, temperature and learning rate under ASHA."""
    every = _every_arm()
    seeds, rates = (0, 1), {"optim.lr": [2e-4, 5e-4]}
    settings = {"objective.mismatch_reward": [-1.0, -0.1, 0.0], "objective.temperature": [1.0, 1.3]}
    suffix = "b{mismatch_reward}-t{temperature}-lr{lr}"
    draws = {"objective.num_samples": [1, 4, 16, 64, 256]}
    expected = {"objective.estimator": "expected"}
    return replace(
        builtin(),
        name="study",
        trials=(
            *grid("sft-lr{lr}", seeds, **every["sft"], **rates),
            *grid("dft-lr{lr}", seeds, **every["dft"], **rates),
            *grid(f"otr-expected-{suffix}", seeds, **expected, **settings, **rates),
            *grid(f"otr-k{{num_samples}}-{suffix}", seeds, **draws, **settings, **rates),
        ),
        # Before it decays, a high learning rate looks worse than it is at the end.
        search=SearchSettings(scheduler="asha", metric="val_exact", grace_steps=80),
    )


def debug() -> SweepConfig:
    """Run the whole system on a few steps and items, for tests."""
    config = builtin()
    return replace(
        config,
        name="debug",
        train=replace(config.train, max_steps=6, log_interval=2, eval_interval=3),
        trials=_arms(("sft", "otr-k16"), seeds=(0,)),
        benchmarks=("builtin:target-heldout", "builtin:retained-code"),
        max_items=8,
    )


def search_trials(
    names: Sequence[str], seeds: Sequence[int], own: Mapping[str, dict[str, Any]] | None = None
) -> tuple[Trial, ...]:
    """Return the trials of a search's arms, without the learning rates of presets.

    Args:
        names: arms or objectives; none: the user's own arms or, without any, SEARCH_ARMS. SFT, the
            arm that all are compared with, is added if it is missing.
        seeds: seeds of each arm.
        own: the user's own arms, {name: {dotted key of `TrainConfig`: value}}.

    Raises:
        ValueError: no such arm; the message gives the nearest one.
    """
    default = Objective().name
    whole = {n: {} if n == default else {"objective.name": n} for n in objective.names()}
    known: dict[str, dict[str, Any]] = _every_arm() | whole | dict(own or {})
    chosen = list(dict.fromkeys(names or own or SEARCH_ARMS))
    for name in chosen:
        if name not in known:
            raise ValueError(f"no arm {name!r}: {did_you_mean(name, known)}")
    if CONTROL not in chosen:
        chosen.insert(0, CONTROL)
    return trials_of({name: known[name] for name in chosen}, seeds)


def trials_of(arms: Mapping[str, dict[str, Any]], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Return a trial per arm, {name: {dotted key of `TrainConfig`: value}}, and seed."""
    return tuple(Trial(name, arm, seed) for name, arm in arms.items() for seed in seeds)


def _every_arm() -> dict[str, dict[str, Any]]:
    """Return the overrides of each arm that the objectives name."""
    arms: dict[str, dict[str, Any]] = {}
    for name in objective.names():
        chosen = {} if name == Objective().name else {"objective.name": name}
        for arm, settings in (objective.kind_of(name).arms or {name: {}}).items():
            arms[arm] = chosen | {f"objective.{key}": value for key, value in settings.items()}
    # ASFT (arXiv:2509.23753): DFT, kept near the base model.
    arms["asft"] = arms["dft"] | {"kl_weight": ASFT_KL_WEIGHT}
    return arms


def _arms(names: Iterable[str], seeds: Sequence[int], lr: float = 0) -> tuple[Trial, ...]:
    """Return the trials of these arms at learning rate `lr`; 0: those of `builtin`."""
    every = _every_arm()
    arms = {name: every[name] | {"optim.lr": lr or LEARNING_RATES[name]} for name in names}
    return trials_of(arms, seeds)


PRESETS: dict[PresetName, Callable[[], SweepConfig]] = {
    "builtin": builtin,
    "family": family,
    "gsm8k": gsm8k,
    "study": study,
    "debug": debug,
}
