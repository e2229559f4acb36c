"""A trial without its training: the same reports and files in milliseconds instead of seconds.

It replaces `tuning.trial.run_trial`. The model of a trial is a biased coin: its only weight is its
probability to answer rightly. That follows a learning curve that depends on the learning rate and
the number of draws, so that ASHA has something to decide.

Only light modules are imported here: every trial is a process that starts with its imports.
"""

import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from ray import tune
from safetensors.numpy import load_file, save_file

from otr.config import TrainConfig
from otr.loop.identity import identity
from tuning.space import Trial, config_of

REPORT_SECONDS = 0.02  # between two reports, as the work of the steps
PROCESS_CPU = "system/process_cpu_seconds"  # of the trial's process, including its start
WEIGHTS = "model.safetensors"
BEST_RATE, SLOWNESS = 5e-4, 40.0


def run_trial(
    tune_config: dict[str, Any],
    *,
    config: TrainConfig,
    directory: str,
    stop_file: str | None = None,
    packed: str | None = None,
) -> None:
    """Report as a run of `otr.loop.loop.train` does, and write its last checkpoint."""
    trial = Trial(**tune_config["trial"])
    own = config_of(config, trial)
    run = Path(directory, trial.name, "train")
    run.mkdir(parents=True, exist_ok=True)
    (run / "identity.json").write_text(json.dumps(identity(own, [("rows.jsonl", 1)]), indent=2))
    for step in reported(own):
        time.sleep(REPORT_SECONDS)
        metrics: dict[str, Any] = report(own, step)
        metrics[PROCESS_CPU] = time.process_time()
        if step == 1:
            metrics["note"] = "single on 1 worker"
        if step == own.max_steps:
            metrics["save/stall_seconds"] = 0.01
            run_json = {"trial": asdict(trial), "config": asdict(own)}
            metrics["checkpoint_path"] = str(save(own, run, metrics, run_json))
        tune.report(metrics)


def reported(config: TrainConfig) -> list[int]:
    """Return the steps at which a run reports."""
    every = range(config.log_interval, config.max_steps, config.log_interval)
    return sorted({1, *every, config.max_steps})


def skill(config: TrainConfig, step: int) -> float:
    """Return the coin's probability to be right after so many steps, in [0, 1]."""
    objective = config.objective
    off = math.log(config.optim.lr / BEST_RATE)
    draws = 1 - 0.3 / objective.num_samples if objective.name == "otr" else 0.95
    luck = Random(f"{config.seed}/{config.optim.lr}/{objective}").uniform(-0.03, 0.03)
    learned = 0.8 * draws * math.exp(-(off**2) / 2) * (1 - math.exp(-step / SLOWNESS))
    return min(1.0, max(0.0, 0.1 + learned + luck))


def report(config: TrainConfig, step: int) -> dict[str, float]:
    """Return the metrics of a report, named as in `otr.loop.loop` and `otr.training.worker`."""
    right, noise = skill(config, step), Random(f"{config.seed}/{step}").random()
    names = ("loss", "nll", "reward", "hit_rate", "entropy", "grad_norm")
    metrics = {"lr": config.optim.lr} | dict.fromkeys(names, 1 - right + 0.01 * noise)
    metrics |= {"tokens_per_second": 5000 + 100 * noise, "data_wait": 0.001 * noise}
    metrics |= {
        "system/cpu_utilization_percentage": 100 * noise,
        "system/system_memory_usage_megabytes": 5000 + noise,
    }
    if step % config.eval_interval == 0 or step == config.max_steps:
        metrics |= {"val_nll": 2 * (1 - right), "val_token_accuracy": right, "val_exact": right}
    return {"step": step, **metrics}


def save(config: TrainConfig, run: Path, metrics: dict[str, Any], run_json: dict[str, Any]) -> Path:
    """Write a checkpoint with the layout of `otr.loop.checkpoint`; return its directory."""
    directory = run / f"step-{config.max_steps:06d}"
    trainer = directory / "trainer"
    (trainer / "optimizer").mkdir(parents=True, exist_ok=True)
    for path in Path(config.model.path).iterdir():
        if path.is_file() and path.name != WEIGHTS:
            shutil.copyfile(path, directory / path.name)
    write_coin(directory, skill(config, config.max_steps))
    (directory / "run.json").write_text(json.dumps(run_json, indent=2))
    state = {"step": config.max_steps, "world": 1, "metrics": metrics}
    (trainer / "state.json").write_text(json.dumps(state, indent=2))
    for name in ("files-0.json", "optimizer/.metadata", "optimizer/__0_0.distcp"):
        (trainer / name).write_text("{}")
    return directory


def write_coin(directory: Path, right: float) -> None:
    """Write the weights of a coin that is right with probability `right`."""
    save_file({"right": np.array([right], np.float32)}, directory / WEIGHTS)


def read_coin(directory: Path) -> float:
    """Return the probability to be right of the coin in a model directory."""
    return float(load_file(directory / WEIGHTS)["right"][0])
