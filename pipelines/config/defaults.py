"""Defaults that fit the model, the data and the machine.

`open_options` names the options that a command leaves open. `decide` chooses their values when the
run is checked, and notes the reason for each in `SweepConfig.chosen`. A preset with its own model
and data leaves nothing open.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.hardware import GIB
from otr.config import DataConfig, OptimConfig, TrainConfig
from pipelines.config.presets import SweepConfig, size_of_search
from pipelines.config.run_json import RUN_FILE, read_run
from pipelines.model_size import count_parameters
from tuning.space import with_overrides

if TYPE_CHECKING:
    from otr.training.corpus import CorpusReport
    from pipelines.config.prepared import PreparedRun

STEP_TOKENS = 16_384
"""Tokens per optimizer step: 50 to 100 conversations, usual for fine-tuning."""
STEPS_PER_EPOCH = 50
"""Optimizer steps that an epoch should have at least: small data gets smaller steps."""
RATE, RATE_WEIGHTS, RATE_EXPONENT = 1e-4, 135e6, -0.35
"""Learning rate of full fine-tuning for a model with so many weights, and how it changes with their
number. The best rates that were found for 135 M and 1.4 M weights, 1e-4 and 5e-4, are on this curve
(docs/results). For 1.5 B it gives 4e-5; DFT's authors (arXiv:2508.05629) took 5e-5 there."""
LEAST_RATE, MOST_RATE = 1e-5, 5e-4
LONGEST = 8192
"""Longest sequence length that is chosen, since memory grows with it."""
SHORTEST = 128
PACKED = 512
"""Shortest sequence length for data that fills one: several short examples leave smaller gaps in a
long row than in a short one."""
PASS_TOKENS = {"CPU": 4096, "GPU": 16_384}
"""Tokens per forward pass that keep a device busy: more would only need more memory."""
_PROCESS_BYTES = GIB  # of a worker's libraries
_DRIVER_BYTES = 2 * GIB  # of this process and Ray's own
_UNKNOWN_BYTES = 4 * GIB  # of a trial whose memory can't be computed

_FITTED = (
    *("train.model.dtype", "train.workers.cpus", "train.data.sequence_length"),
    *("train.micro_batch_size", "engine.dtype"),
)
_SIZES = (
    *("train.global_batch_size", "train.max_steps", "train.optim.warmup_steps"),
    *("train.log_interval", "train.eval_interval"),
)


@dataclass(frozen=True)
class Facts:
    """Facts about machine, model and data that the rules choose by."""

    cores: int
    fast_bfloat16: bool
    """Whether the workers' CPU or GPU has instructions for bfloat16."""
    free_bytes: int
    """Free memory of this machine, or of one GPU if the workers use GPUs."""
    on_cluster: bool
    """Whether the run goes to the cluster at RAY_ADDRESS, whose hosts are unknown here."""
    max_length: int
    """Longest sequence length that may be chosen, which the model has positions for."""
    corpus: "CorpusReport"
    longest: int
    """Tokens of the longest usable example, of the validation data too."""


@dataclass(frozen=True)
class Choice:
    """A chosen value, and the reason in a few words."""

    value: Any
    reason: str


def open_options(given: Mapping[str, Any], *, trials: int, preset_named: bool) -> dict[str, str]:
    """Return the options that a command leaves open, as the start of `SweepConfig.chosen`.

    What was given is never open. A preset that was named keeps its number of steps and their size.

    Args:
        given: dotted keys that were given, and their values.
        trials: number of trials.
        preset_named: whether the command names a preset.
    """
    model, data = is_own(given, "train.model.path"), is_own(given, "train.data.paths")
    keys = [*(_FITTED if model or data else ()), *(_SIZES if data and not preset_named else ())]
    if keys and trials > 1:
        keys.append("search.max_concurrent")
    if "epochs" in given:
        keys.append("train.max_steps")
    return {key: "" for key in keys if key not in given}


def is_own(given: Mapping[str, Any], key: str) -> bool:
    """Return whether a path, or one of several, was given and is not built in."""
    paths = given.get(key, ())
    return not all(p.startswith("builtin:") for p in ([paths] if isinstance(paths, str) else paths))


def decide(run: "PreparedRun") -> "PreparedRun":
    """Choose the options that are still open; read the training data for that.

    A run that exists keeps the values that were chosen when it began, also on another machine.

    Raises:
        ValueError: the model or the data can't be read, or the number of epochs can't be converted
            into steps.
    """
    config = _as_it_began(run.config, run.directory / RUN_FILE)
    if all(config.chosen.values()):
        return replace(run, config=config)
    facts = _look(config)
    for rule in _RULES:
        choices = {k: c for k, c in rule(config, facts).items() if config.chosen.get(k) == ""}
        reasons = {key: choice.reason for key, choice in choices.items()}
        values = {key: choice.value for key, choice in choices.items()}
        config = with_overrides(config, {**values, "chosen": config.chosen | reasons})
    return replace(run, config=config, read=facts.corpus)


def with_choices(config: SweepConfig, decided: SweepConfig) -> SweepConfig:
    """Return a config with what was chosen for the same config with other spellings of paths."""
    return _adopt(config, decided, [*decided.chosen])


def described(config: SweepConfig) -> list[list[str]]:
    """Return option, value and reason of each choice."""
    return [[key, f"{_value(config, key)}", reason] for key, reason in config.chosen.items()]


def _as_it_began(config: SweepConfig, file: Path) -> SweepConfig:
    """Return the config with what was chosen for the run in `file`, if it has begun.

    Another number of epochs is converted into steps anew.
    """
    if not config.chosen or not file.is_file():
        return config
    before = read_run(file)
    changed = {"train.max_steps"} if before.epochs != config.epochs else set()
    return _adopt(config, before, [k for k in before.chosen if k in config.chosen.keys() - changed])


def _adopt(config: SweepConfig, other: SweepConfig, keys: Sequence[str]) -> SweepConfig:
    reasons = {key: other.chosen[key] for key in keys}
    values = {key: _value(other, key) for key in keys}
    return with_overrides(config, {**values, "chosen": config.chosen | reasons})


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def _look(config: SweepConfig) -> Facts:
    """Find out what the choices depend on."""
    import torch  # these imports take seconds

    from evals.hardware import this_machine
    from otr.training.corpus import inspect_corpus

    train, machine = config.train, this_machine()
    data, on_gpu = first_read(config), train.workers.gpus > 0
    corpus = inspect_corpus(data, train.model)
    longest = corpus.longest
    if data.validation:
        report = inspect_corpus(data.of_validation, train.model)
        longest = max(longest, report.longest)
    return Facts(
        cores=machine.cores,
        fast_bfloat16=machine.is_fast("bfloat16", on_gpu=on_gpu),
        free_bytes=(
            int(_free_gpu_bytes() * min(1, train.workers.gpus))
            if on_gpu and torch.cuda.is_available()
            else int(machine.free_gib * GIB) - _DRIVER_BYTES
        ),
        on_cluster=bool(os.environ.get("RAY_ADDRESS")),
        max_length=data.sequence_length,
        corpus=corpus,
        longest=longest,
    )


def first_read(config: SweepConfig) -> DataConfig:
    """Return the data as it is read to choose from: if its length is open, the largest possible."""
    from otr.models.architecture import max_positions  # imports transformers

    if config.chosen.get("train.data.sequence_length") != "":
        return config.train.data
    length = min(LONGEST, max_positions(config.train.model) or LONGEST)
    return replace(config.train.data, sequence_length=length)


def _free_gpu_bytes() -> int:
    """Return the free memory of the fullest visible GPU.

    torch would need a CUDA context in this process, and so keep memory of a GPU until the run ends.
    """
    import torch

    from evals import gpu

    cards: list[gpu.Card] = []
    with suppress(ValueError):  # `checks.gpu` reports a driver that does not work
        cards = gpu.cards(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    free = min((card.free_gib for card in cards if card.total_gib), default=0.0)
    return int(free * GIB) or torch.cuda.mem_get_info()[0]


def _dtype(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose the precision of training; the engine computes in the same one."""
    device = _device(config.train)
    if facts.on_cluster and device == "CPU":
        choice = Choice("float32", "CPUs of the cluster may have no instructions for bfloat16")
    elif facts.fast_bfloat16:
        choice = Choice("bfloat16", f"this {device} has instructions for it")
    else:
        choice = Choice("float32", f"this {device} has no instructions for bfloat16")
    found = {"train.model.dtype": choice}
    open_ = config.chosen.get("train.model.dtype") == ""
    dtype = choice.value if open_ else config.train.model.dtype
    return {**found, "engine.dtype": Choice(dtype, "as in training")}


def _learning_rate(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose a learning rate for all weights by their number, if it is open."""
    if config.chosen.get("train.optim.lr") != "":
        return {}
    weights = count_parameters(config.train.model.path)
    if not weights:
        reason = "careful, since the model's number of weights is unknown"
        return {"train.optim.lr": Choice(OptimConfig.lr, reason)}
    rate = RATE * (weights / RATE_WEIGHTS) ** RATE_EXPONENT
    rounded = float(f"{min(max(rate, LEAST_RATE), MOST_RATE):.0e}")
    return {"train.optim.lr": Choice(rounded, f"for {weights / 1e6:,.3g} M weights")}


def _sequence_length(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose the shortest rows that hold every example, and several of the short ones."""
    corpus, longest = facts.corpus, facts.longest
    filled = min(PACKED, _rounded_up(corpus.tokens))
    length = min(facts.max_length, max(SHORTEST, filled, _rounded_up(longest)))
    read = "" if corpus.complete else f" of the first {corpus.rows:,} records"
    reason = f"the longest example{read} has {longest:,} tokens"
    if too_long := corpus.rejected.get("over-long"):
        reason += f"; {too_long:,} longer than {facts.max_length:,} are left out"
    return {"train.data.sequence_length": Choice(length, reason)}


def _trials_at_once(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose as many trials at once as cores and memory allow; Ray counts GPUs and hosts itself."""
    if facts.on_cluster or config.train.workers.gpus:
        return {"search.max_concurrent": Choice(0, "as many as there is room for")}
    by_cores = facts.cores // config.train.workers.count
    by_memory = facts.free_bytes // _least_bytes(config.train, facts.free_bytes)
    count = _trials(config)
    most = max(1, min(count, by_cores, by_memory))
    limit = "memory" if by_memory < by_cores else "cores"
    reason = "all trials" if most == count else f"this machine's {limit}"
    return {"search.max_concurrent": Choice(most, reason)}


def _threads(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    workers = config.train.workers
    if facts.on_cluster or workers.gpus:
        where = "the cluster's hosts differ" if facts.on_cluster else "the GPU computes"
        return {"train.workers.cpus": Choice(1, where)}
    sharing = workers.count * _at_once(config)
    reason = f"all {facts.cores} cores"
    if sharing > 1:
        reason = f"{facts.cores} cores for {sharing} workers at a time"
    return {"train.workers.cpus": Choice(max(1, facts.cores // sharing), reason)}


def _global_batch(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose a power of two times what the workers process at once."""
    train, corpus = config.train, facts.corpus
    rows = corpus.packed_rows(train.data.sequence_length)
    micro_open = config.chosen.get("train.micro_batch_size") == ""
    unit = train.workers.count * (1 if micro_open else train.micro_batch_size)
    tokens_per_row = corpus.tokens * (corpus.records or 1) / corpus.rows / rows if rows else 0.0
    wanted = STEP_TOKENS / (tokens_per_row or train.data.sequence_length) / unit
    units = 2 ** max(0, round(math.log2(wanted)))
    reason = f"about {STEP_TOKENS:,} tokens per step"
    while rows and units > 1 and rows / (units * unit) < STEPS_PER_EPOCH:
        units //= 2
        reason = f"small data: {STEPS_PER_EPOCH} steps per epoch, or as many as it has rows"
    return {"train.global_batch_size": Choice(units * unit, reason)}


def _micro_batch(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Choose the largest micro batch that fits into free memory, within PASS_TOKENS."""
    train = config.train
    if config.chosen.get("train.micro_batch_size") != "":
        return {}
    each = train.global_batch_size // train.workers.count
    length, limit = train.data.sequence_length, PASS_TOKENS[_device(train)]
    sizes = [n for n in range(each, 0, -1) if each % n == 0]
    within = [n for n in sizes if n * length <= limit] or [1]
    reason = f"up to {limit:,} tokens per forward pass"
    if within[0] == each:
        reason = "the whole step in one forward pass"
    if facts.on_cluster:
        return {"train.micro_batch_size": Choice(within[0], reason)}
    free = facts.free_bytes
    if not train.workers.gpus:
        free = free // (train.workers.count * _at_once(config)) - _PROCESS_BYTES
    for size in within:
        needed = _needed_bytes(replace(train, micro_batch_size=size), free)
        if needed is None or needed <= free:
            return {"train.micro_batch_size": Choice(size, reason)}
        reason = f"what fits into {max(0, free) / GIB:.1f} GiB of free memory"
    return {"train.micro_batch_size": Choice(1, f"more than {reason.removeprefix('what ')}")}


def _steps(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    """Convert epochs into steps, if the number of steps is open.

    Raises:
        ValueError: the number of packed rows is unknown.
    """
    if config.chosen.get("train.max_steps") != "":
        return {}
    train = config.train
    rows = facts.corpus.packed_rows(train.data.sequence_length)
    if rows is None:
        raise ValueError(
            f"{_epochs(config)} of {', '.join(train.data.paths)} can't be converted into "
            "steps: its size is unknown before it has been read; give --max-steps"
        )
    steps = max(1, math.ceil(config.epochs * rows / train.global_batch_size))
    about = "" if facts.corpus.complete else "about "
    return {"train.max_steps": Choice(steps, f"{_epochs(config)} of {about}{rows:,} packed rows")}


def _epochs(config: SweepConfig) -> str:
    return f"{config.epochs:g} epoch{'' if config.epochs == 1 else 's'}"


def _intervals(config: SweepConfig, facts: Facts) -> dict[str, Choice]:
    steps, preset = config.train.max_steps, TrainConfig
    return {
        "train.optim.warmup_steps": Choice(
            min(OptimConfig.warmup_steps, steps // 10), "at most a tenth of the steps"
        ),
        "train.log_interval": Choice(
            max(1, min(preset.log_interval, steps // 10)), "at least ten reports"
        ),
        "train.eval_interval": Choice(
            max(1, min(preset.eval_interval, steps // 5)), "at least five evaluations"
        ),
    }


_RULES: tuple[Callable[[SweepConfig, Facts], dict[str, Choice]], ...] = (
    *(_dtype, _learning_rate, _sequence_length, _trials_at_once, _threads),
    *(_global_batch, _micro_batch, _steps, _intervals),
)


def _device(train: TrainConfig) -> str:
    return "GPU" if train.workers.gpus else "CPU"


def _at_once(config: SweepConfig) -> int:
    """Return how many trials run at once on this machine."""
    return min(_trials(config), config.search.max_concurrent or _trials(config))


def _trials(config: SweepConfig) -> int:
    """Return the number of trials among which cores and memory are shared if there is room for all.

    The sweep and the search before it have the same shares, so the larger number counts.
    """
    return max(len(config.trials), size_of_search(config))


def _rounded_up(tokens: int) -> int:
    return 64 * math.ceil(tokens / 64)


def _least_bytes(train: TrainConfig, free: int) -> int:
    """Return the memory of a trial on this machine with a micro batch of one row."""
    workers = train.workers.count
    needed = _needed_bytes(replace(train, micro_batch_size=1), free // workers)
    return workers * (_UNKNOWN_BYTES if needed is None else needed + _PROCESS_BYTES)


def _needed_bytes(train: TrainConfig, free: int) -> int | None:
    """Return the memory of one worker that has `free`, with a reserve; None if it is unknown."""
    from otr.memory.planner import HEADROOM, plan  # its imports take seconds

    try:
        return int(plan(train, free).device.total / (1 - HEADROOM))
    except NotImplementedError:
        return None
