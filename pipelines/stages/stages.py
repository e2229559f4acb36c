"""The stages of a run, each with its line on the terminal.

In: a resolved `SweepConfig`, the run's directory. Out: what the corpus has of the benchmarks;
trained trials; scores of model directories. Ray must be running, but for `check_prompts`. What is
already there from an interrupted run is taken from there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from evals import prompts
from evals.benchmark import Benchmark, TaskScore
from pipelines.checks import machine
from pipelines.config.presets import SweepConfig
from pipelines.config.resolve import load_benchmarks, local_model
from pipelines.runtime import console
from pipelines.runtime.stopping import save_at_sigterm
from pipelines.stages import contamination
from pipelines.stages.contamination import Overlap
from pipelines.stages.scoring import Scorer
from pipelines.tracking.tracker import Tracker

if TYPE_CHECKING:
    from ray.tune import Callback

    from tuning.sweep import TrialResult

Scores = dict[str, list[TaskScore]]


def check_prompts(config: SweepConfig) -> None:
    """See whether the model can be asked all benchmarks, before anything expensive.

    Raises:
        ValueError: what `evals.prompts.check` finds.
    """
    with console.stage("check", "prompts") as stage:
        benchmarks = load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)
        prompts.check(local_model(config.train.model.path), benchmarks, config.engine)
        stage.say(f"prompts: all within {config.engine.max_model_len} tokens")


def compare_with_corpus(
    config: SweepConfig, benchmarks: Sequence[Benchmark], directory: Path
) -> dict[str, Overlap]:
    """What of each benchmark is in the training corpus; also in contamination.json."""
    with console.stage("overlap", "comparing the corpus with the benchmarks") as stage:
        overlaps = contamination.check(config.train.data, benchmarks, directory)
        found = [f"{o.benchmark} {o.share:.0%}" for o in overlaps.values() if o.hits]
        stage.say(f"items in the corpus: {', '.join(found) or 'none'}")
        return overlaps


def train(
    config: SweepConfig, directory: Path, tracker: Tracker, callbacks: Sequence["Callback"] = ()
) -> "list[TrialResult]":
    """Train every trial, or what is left of them; checkpoints in `<directory>/trials`.

    `callbacks`: of Ray Tune, called in this process.
    """
    # Ray Tune's and Train's imports take seconds: a check that fails shall not wait for them.
    from pipelines.tracking.trial_callbacks import Watcher, settle
    from tuning import sweep

    if len(ray.nodes()) > 1:
        machine.cluster(config)
    stop_file = directory / "stop"
    with save_at_sigterm(stop_file), console.stage("train") as stage:
        results = sweep.run(
            config.train,
            config.trials,
            config.search,
            storage=str(directory),
            name="trials",
            callbacks=[Watcher(tracker, config.train, stage, len(config.trials)), *callbacks],
            resume=True,
            stop_file=str(stop_file),
        )
        for result in results:
            settle(tracker, config.train, result)
        states = [result.status for result in results]
        stage.say(", ".join(f"{states.count(s)} trials {s}" for s in dict.fromkeys(states)))
        return results


def score_models(
    models: Mapping[str, str], scorer: Scorer, done: Callable[[str, list[TaskScore]], None]
) -> Scores:
    """Score model directories of one shape on all benchmarks with one engine.

    Args:
        models: name to Hugging Face directory or hub name.
        scorer: what it has scored already is taken from there; when that is all, no engine starts.
        done: called with the name and scores of each model when it has them.
    """
    scores: Scores = {}
    scorer.plan(models)
    with console.stage("score") as stage:

        def say(name: str, detail: str) -> None:
            stage.say(f"{len(scores)} of {len(models)} models scored · {name}{detail}")

        def progress(name: str, benchmark: str, finished: int, every: int) -> None:
            say(name, f", {benchmark}: {finished} of {every} answers")

        for name, path in models.items():
            say(name, "")
            scorer.starting = partial(say, name, ": starting vLLM")
            scores[name] = scorer.score(name, path, partial(progress, name))
            done(name, scores[name])
        stage.say(f"{len(scores)} models on {len(scorer.benchmarks)} benchmarks")
        return scores
