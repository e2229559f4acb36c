"""Score a Hugging Face directory, a LoRA adapter or a model on the hub on benchmarks.

It prints a table and writes `<output>/<name>/scores.json`, with every answer in `scores/`, and a
run in MLflow. Answers that are stored already are not generated again.

    python pipelines/score_checkpoint.py DIRECTORY --benchmarks gsm8k --benchmark-dir benchmarks
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.benchmark import Benchmark, TaskScore
from otr.files import write_json
from pipelines.checks import preflight
from pipelines.config.options import has_default_benchmarks
from pipelines.config.prepared import prepare_temporarily, prepare_to_score
from pipelines.config.presets import SweepConfig
from pipelines.report import terminal
from pipelines.report.leaderboard import percent
from pipelines.runtime import autoscaling, cluster, console, next_steps, run_directory
from pipelines.stages import score
from pipelines.tracking.mlflow_store import SWEEP
from pipelines.tracking.recorded_run import recorded_run

if TYPE_CHECKING:
    from pipelines.config.commands import Score

_TRAINING_CHECKS = ("data", "trials", "trackers", "disk", "training", "memory", "devices")


def run(command: "Score") -> int:
    """Score the model, or print what would be scored; return the exit code.

    Raises:
        ValueError: an option or a check failed.
    """
    config = command.load()
    if has_default_benchmarks(config):
        console.note("no --benchmarks was given: the questions are about the built-in world")
    if command.dry_run:
        _print_dry_run(config)
        return 0
    prepared = prepare_to_score(config)
    directory, benchmarks = prepared.directory, prepared.benchmarks
    run_directory.check_free(directory)
    preflight.require(prepared, skip=_irrelevant_checks(benchmarks))
    config = replace(config, engine=prepared.engine)  # run.json has what was chosen
    terminal.print_benchmarks(benchmarks)
    needs = autoscaling.engine_bundles(config)
    params = run_directory.score_params(config)
    with (
        recorded_run(config, directory, params) as (_, tracker, outcome),
        cluster.ray_session(directory / "logs", cluster.logical_cpus(config), needs),
        score.Scorer(benchmarks, prepared.engine, directory) as scorer,
    ):
        if prepared.adapter:
            scorer.serve_adapters({"base": prepared.model_dir, "model": prepared.adapter})
        models = {"model": prepared.adapter or prepared.model_dir}
        (scores,) = score.score_models(models, scorer).values()
        write_json(directory / "scores.json", [asdict(each) for each in scores])
        tracker.log_scores(SWEEP, scores)
        tracker.log_artifacts([directory / run_directory.RUN_FILE, directory / "scores.json"])
        outcome.ok = True
    _print_table(scores)
    console.say(f"answers: {next_steps.display_path(directory / 'scores')}")
    show = next_steps.pipeline_command("show_scores", directory)
    next_steps.print_next_steps(("read the answers", show))
    return 0


def _print_dry_run(config: SweepConfig) -> None:
    """Print the settings, the benchmarks and one prompt as the model sees it."""
    with prepare_temporarily(config, prepare_to_score) as prepared:
        shown = {"model": config.train.model.path, "run": str(prepared.directory)}
        console.say(json.dumps(shown | {"engine": asdict(prepared.engine)}, indent=2))
        terminal.print_benchmarks(prepared.benchmarks)
        console.say("one prompt:")
        console.say(prepared.example_prompt)


def _irrelevant_checks(benchmarks: Sequence[Benchmark]) -> list[str]:
    """Return the checks that only training needs; for a base model, also of its chat template."""
    base_model = all(benchmark.style == "completion" for benchmark in benchmarks)
    return [*_TRAINING_CHECKS, *(["model"] if base_model else [])]


def _print_table(scores: Sequence[TaskScore]) -> None:
    lines = [
        [s.task, metric, percent(values), str(s.num_examples), _cut_off(s)]
        for s in scores
        for metric, values in {s.metric: (s.value, s.low, s.high), **s.also}.items()
    ]
    columns = ("benchmark", "metric", "% [95 % interval]", "items", "answers cut off")
    console.table(columns, lines)


def _cut_off(score: TaskScore) -> str:
    """Return how many answers were cut off at the length limit, and how many of those in a loop."""
    answers = score.num_examples * score.settings["num_samples"]
    repeating = score.settings.get("num_repeating", 0)  # scores of older versions lack it
    loops = f", {repeating} in a loop" if repeating else ""
    return f"{score.settings['num_truncated']} of {answers}{loops}"


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["score", *sys.argv[1:]]))
