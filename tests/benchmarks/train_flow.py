"""Data path of the training benchmark: corpus, run and snapshots, each in a fresh process.

Peak memory is the sum over the process and all that it started. Shared pages count in proportion,
so an object store counts once.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.train_data import BASE, OTR

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
PAUSE = 0.5  # seconds between two samples of the memory
SHORT_TRIALS = 8  # that are timed
Figures = dict[str, Any]


def measured(way: str, **job: Any) -> Figures:
    """Run one of WAYS in a fresh process.

    Returns:
        Its figures, "whole_seconds" from command to exit, and "peak_mib".

    Raises:
        RuntimeError: it failed; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        started = time.time()
        job |= {"started": started, "scratch": scratch}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.train_flow", way, json.dumps(job)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OTR_CACHE": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        with _Watch(process.pid) as watch:
            text, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{way} ended with {process.returncode}; its error is above")
        found = json.loads(text.splitlines()[-1])
        return found | {"whole_seconds": time.time() - started, "peak_mib": watch.peak / MIB}


class _Watch:
    """Peak memory of a process and its descendants while the context is open."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Watch":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _sample(self) -> None:
        while not self.over.wait(PAUSE):
            self.peak = max(self.peak, _memory(self.pid))


def _memory(pid: int) -> int:
    """Return bytes of a process and its descendants, or 0 if they have ended."""
    try:
        root = psutil.Process(pid)
        pids = [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return 0
    return sum(map(_share, pids))


def _share(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # the process has ended, or this is not Linux
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line[:4] == "Pss:"), 0)


def ray_data(job: Figures) -> Figures:
    """Make the packed store, as a run does before it trains."""
    import ray
    import ray.data  # its import is start-up, not work

    import otr.data  # noqa: F401 - the same, of transformers, which TRL imports too
    from otr import DataConfig, ModelConfig
    from otr.training.store.write import ensure_store, read_index

    ray.init(address="local", num_cpus=job["processes"], log_to_driver=False, logging_level="ERROR")
    data = DataConfig((f"{job['directory']}/plain",), sequence_length=job["sequence_length"])
    with tempfile.TemporaryDirectory(dir=job["directory"]) as folder:
        start = time.perf_counter()
        index = read_index(ensure_store(data, ModelConfig(BASE), folder))
        seconds = time.perf_counter() - start
    tokens = sum(part.tokens for part in index.parts)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "density": tokens / (index.rows * job["sequence_length"]),
    }


def trl(job: Figures) -> Figures:
    """Pack as SFTTrainer does."""
    from tests.benchmarks.train_peers import prepare

    return _prepared(prepare, job)


def trl_batched(job: Figures) -> Figures:
    """Pack with TRL after one pass of `datasets.map` over batches."""
    from tests.benchmarks.train_peers import prepare_batched

    return _prepared(prepare_batched, job)


def _prepared(prepare: Callable[..., Any], job: Figures) -> Figures:
    import datasets
    import trl
    from trl import SFTTrainer  # noqa: F401 - its import is start-up, not work

    assert trl.pack_dataset
    datasets.disable_progress_bars()
    length, processes = job["sequence_length"], job["processes"]
    start = time.perf_counter()
    done = prepare(Path(job["directory"]), length, processes, job["scratch"])
    seconds = time.perf_counter() - start
    tokens = sum(map(sum, done["seq_lengths"]))
    return {"seconds": seconds, "tokens": tokens, "density": tokens / (len(done) * length)}


def fit(job: Figures) -> Figures:
    """Run a sweep of two trials, one after the other, on Ray; then short ones side by side.

    Returns:
        Seconds from the command to the end of the first trial's first step; seconds from the end of
        the first trial to that of the second's first step; share of time spent waiting for rows;
        seconds that each further trial of one step adds to a sweep that runs as many at once as
        there are processes.
    """
    import ray

    from otr import DataConfig, ModelConfig, TrainConfig
    from tuning import sweep
    from tuning.settings import SearchSettings
    from tuning.space import Trial

    ray.init(address="local", num_cpus=job["processes"], log_to_driver=False, logging_level="ERROR")
    config = TrainConfig(
        model=ModelConfig(BASE),
        data=DataConfig((f"{job['directory']}/plain",), sequence_length=job["sequence_length"]),
        objective=OTR,
        max_steps=job["steps"],
        global_batch_size=job["global_batch_size"],
        micro_batch_size=job["global_batch_size"],
        log_interval=job["steps"] - 1,  # the second report covers all steps but the first and last
    )
    trials = [Trial("first"), Trial("second", seed=1)]
    seen = _reports_to_tune()
    settings = SearchSettings(max_concurrent=1)
    sweep.run(sweep.Experiment(config, settings, job["scratch"], "trials", [seen]), trials)
    first, second = (seen.of[trial.name] for trial in trials)
    at_once = job["processes"]
    short = [Trial(f"short-{number}", seed=number) for number in range(SHORT_TRIALS + at_once)]
    one_step = replace(config, max_steps=1, log_interval=1)
    sweep.run(sweep.Experiment(one_step, SearchSettings(), job["scratch"], "short", [seen]), short)
    ends = sorted(seen.of[trial.name][-1]["time"] for trial in short)
    return {
        "first_step_seconds": first[0]["time"] - job["started"],
        "second_trial_seconds": second[0]["time"] - first[-1]["time"],
        "further_trial_seconds": (ends[-1] - ends[at_once - 1]) / SHORT_TRIALS,
        "data_wait": first[1]["data_wait"],
        "tokens_per_second": first[1]["tokens_per_second"],
    }


def _reports_to_tune() -> Any:
    """Return a callback of Tune that keeps the reports of each trial, with their times."""
    from ray.tune import Callback

    class Reports(Callback):
        def __init__(self) -> None:
            self.of: dict[str, list[Figures]] = {}

        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Figures, **info: Any
        ) -> None:
            timed = {name: result.get(name) for name in ("data_wait", "tokens_per_second")}
            self.of.setdefault(str(trial), []).append(timed | {"time": time.time()})

    return Reports()


def order(job: Figures) -> Figures:
    """Look at the sources of the rows that training takes, in all stretches of 50 steps.

    Returns:
        The largest difference between a source's share of a stretch and its weight, in standard
        errors of a random draw: of two mixed files, and of the halves of a single, sorted one.
    """
    import numpy as np

    from otr.training.store.order import Order

    batch, rows = job["global_batch_size"], job["rows"]
    stretch = 50 * batch

    def worst(order: Order, first: int, share: float) -> float:
        places = np.arange(3 * rows)
        mine = np.cumsum(order.rows_at(places) < first)
        shares = (mine[stretch:] - mine[:-stretch]) / stretch
        error = np.sqrt(share * (1 - share) / stretch)
        return float(np.abs(shares - share).max() / error)

    half = rows // 2
    return {
        "mixed": worst(Order([half, rows - half], 0, [0.3, 0.7]), half, 0.3),
        "sorted": worst(Order([rows], 0), half, half / rows),
    }


def save(job: Figures) -> Figures:
    """Take snapshots of a model and its optimizer: seconds that training is blocked for each."""
    import torch

    from otr import ModelConfig, OptimConfig, load_tokenizer
    from otr.loop.checkpoint import Staging
    from otr.loop.loop import Hooks, Progress, take_snapshot
    from otr.loop.policy import Policy
    from otr.optim import make_optimizer
    from tests.benchmarks.train_data import Case, make_model

    model = make_model(Case(job["model"], 64, 1, 1, 1, "cpu", "float32"), "auto")
    policy, tokenizer = Policy(model, OTR), load_tokenizer(ModelConfig(BASE))
    optimizer, staging = make_optimizer(policy, OptimConfig()), Staging()
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    stalls, writes = [], []
    for step in range(4):
        snapshot = take_snapshot(policy, optimizer, staging, Progress(step), Hooks())
        start = time.perf_counter()
        snapshot.write(Path(job["scratch"]) / str(step), tokenizer)
        stalls.append(snapshot.stall_seconds)
        writes.append(time.perf_counter() - start)
    return {"stall_seconds": stalls, "write_seconds": writes}


WAYS = {way.__name__: way for way in (ray_data, trl, trl_batched, fit, order, save)}


def main() -> None:
    # Libraries may print: their stdout goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    found = WAYS[sys.argv[1]](json.loads(sys.argv[2]))
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
