"""The two expensive stages of a run, each with its line on the terminal.

In: a resolved `SweepConfig`, the run's directory. Out: trained trials; scores of model directories.
Ray must be running. What is already there from an interrupted run is taken from there.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import ray

from evals.benchmark import TaskScore
from evals.engine import Engine
from evals.score import score
from pipelines import console, doctor_machine
from pipelines.merge_adapter import merge
from pipelines.presets import SweepConfig
from pipelines.resolve import load_benchmarks, local_model
from pipelines.stopping import stops_at_sigterm
from pipelines.tracking import Tracker
from pipelines.watch import Watcher, settle
from tuning import sweep
from tuning.sweep import TrialResult

Scores = dict[str, list[TaskScore]]


def train(config: SweepConfig, directory: Path, tracker: Tracker) -> list[TrialResult]:
    """Train every trial, or what is left of them; checkpoints in `<directory>/trials`."""
    if len(ray.nodes()) > 1:
        doctor_machine.cluster(config)
    stop_file = directory / "stop"
    with stops_at_sigterm(stop_file), console.stage("train") as stage:
        results = sweep.run(
            config.train,
            config.trials,
            config.search,
            storage=str(directory),
            name="trials",
            callbacks=[Watcher(tracker, config.train, stage, len(config.trials))],
            resume=True,
            stop_file=str(stop_file),
        )
        for result in results:
            settle(tracker, config.train, result)
        states = [result.status for result in results]
        stage.say(", ".join(f"{states.count(s)} trials {s}" for s in dict.fromkeys(states)))
        return results


def score_models(
    models: Mapping[str, str],
    config: SweepConfig,
    directory: Path,
    done: Callable[[str, list[TaskScore]], None],
) -> Scores:
    """Score model directories of one shape on all benchmarks with one engine.

    Args:
        models: name to Hugging Face directory or hub name; the engine is started on the first.
        config: resolved.
        directory: answers and scores are kept in `<directory>/scores/<name>`; those that are there
            for the same weights and items are taken from there, and when all are, no engine starts.
        done: called with the name and scores of each model when it has them.
    """
    with console.stage("score", "reading benchmarks") as stage, ExitStack() as stack:
        benchmarks = load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)
        settings = replace(config.engine, log_dir=str(directory / "logs" / "engine"))
        paths = {name: _whole(name, path, config, directory) for name, path in models.items()}
        scores: Scores = {}

        def say_progress() -> None:
            name = list(paths)[len(scores)]
            stage.say(f"{len(scores)} of {len(paths)} models scored · {name}")

        @cache
        def engine() -> Engine:
            stage.say("starting vLLM")
            first = next(iter(paths.values()))
            started = stack.enter_context(Engine.start(first, settings=settings))
            say_progress()
            return started

        for name, path in paths.items():
            say_progress()
            folder = directory / "scores" / name
            scores[name] = score(engine, settings, path, benchmarks, results_dir=folder)
            done(name, scores[name])
        stage.say(f"{len(scores)} models on {len(benchmarks)} benchmarks")
        return scores


def _whole(name: str, path: str, config: SweepConfig, directory: Path) -> Path:
    """The model's directory; a LoRA adapter is merged into its model first, once."""
    found, merged = local_model(path), directory / "merged" / name
    if not (found / "adapter_config.json").is_file():
        return found
    if not merged.is_dir():
        merge(found, merged, trust_remote_code=config.train.model.trust_remote_code)
    return merged
