"""Score a Hugging Face directory, or a model on the hub, on benchmarks.

It prints a table and writes `<output>/<name>/scores.json`, with every answer in `scores/`. Answers
that are stored already are not generated again.

    python pipelines/score_checkpoint.py DIRECTORY --benchmarks gsm8k --benchmark-dir benchmarks
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.benchmark import Benchmark, TaskScore
from otr.files import write_json
from pipelines.checks import preflight
from pipelines.config.prepared import prepare
from pipelines.report.leaderboard import percent
from pipelines.runtime import autoscaling, cluster, console, next_steps, run_directory
from pipelines.stages import score

if TYPE_CHECKING:
    from pipelines.config.commands import Score

_TRAINING_CHECKS = ("data", "trials", "disk", "MLflow store", "training", "memory", "devices")


def run(command: "Score") -> int:
    """Score the model; return the exit code.

    Raises:
        ValueError: an option or a check failed.
    """
    config = command.load()
    prepared = prepare(config)
    directory, benchmarks, engine = prepared.directory, prepared.benchmarks, config.engine
    score.check_prompts(prepared.model_dir, benchmarks, engine)
    preflight.require(prepared, skip=_irrelevant_checks(benchmarks))
    run_directory.open_run(config, directory)
    needs = autoscaling.engine_bundles(config)
    with (
        run_directory.log_errors(directory),
        cluster.ray_session(directory / "logs", cluster.logical_cpus(config), needs),
        score.Scorer(benchmarks, engine, directory) as scorer,
    ):
        (scores,) = score.score_models({"model": prepared.model_dir}, scorer).values()
    write_json(directory / "scores.json", [asdict(each) for each in scores])
    _print_table(scores)
    console.say(f"answers: {next_steps.display_path(directory / 'scores')}")
    show = next_steps.pipeline_command("show_scores", directory)
    next_steps.print_next_steps(("read the answers", show))
    return 0


def _irrelevant_checks(benchmarks: Sequence[Benchmark]) -> list[str]:
    """Return the checks that only training needs; for a base model, also of its chat template."""
    base_model = all(benchmark.style == "completion" for benchmark in benchmarks)
    return [*_TRAINING_CHECKS, *(["model"] if base_model else [])]


def _print_table(scores: Sequence[TaskScore]) -> None:
    lines = [
        [s.task, metric, percent(values), str(s.num_examples)]
        for s in scores
        for metric, values in {s.metric: (s.value, s.low, s.high), **s.also}.items()
    ]
    console.table(("benchmark", "metric", "% [95 % interval]", "items"), lines)


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["score", *sys.argv[1:]]))
