"""Score any Hugging Face directory, or model on the hub.

In: the directory, and benchmarks. Out: a table, and `<output>/<name>/scores.json` with every answer
beside it in `scores/`. The same command again takes what is there. "show" as the first word reads
those answers: see `pipelines.show_scores`.

    python pipelines/score_checkpoint.py DIRECTORY --benchmarks gsm8k --benchmark-dir benchmarks
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from otr.files import write_json
from pipelines import show_scores
from pipelines.builtin import corpus
from pipelines.checks import preflight
from pipelines.config import options
from pipelines.config.presets import SweepConfig
from pipelines.config.resolve import load_benchmarks, resolved
from pipelines.report.leaderboard import Estimate
from pipelines.runtime import autoscaling, cluster, console, next_steps, run_directory
from pipelines.stages import stages
from pipelines.stages.scoring import Scorer


def main(argv: Sequence[str]) -> int:
    """Score the model that the first argument names."""
    words = list(argv)
    if words[:1] == ["show"]:
        return show_scores.main(words[1:])
    if words and not words[0].startswith("-"):
        words = ["--model", *words]
    return run(options.parse(words, "otr score", single="score").config)


def run(config: SweepConfig) -> int:
    """Score the config's model; returns the exit code.

    Raises:
        ValueError: a check failed.
    """
    directory = Path(config.output).absolute() / config.name
    local = resolved(config, corpus.folder(config.output))
    stages.check_prompts(local)
    preflight.require(local, without=_needless(local))
    run_directory.open_run(config, directory)
    with (
        run_directory.log_errors(directory),
        cluster.ray_session(
            directory / "logs", cluster.logical_cpus(local), autoscaling.engine_bundles(local)
        ),
        Scorer(local, directory) as scorer,
    ):
        models = {"model": local.train.model.path}
        (scores,) = stages.score_models(models, scorer, lambda *_: None).values()
    write_json(directory / "scores.json", [asdict(score) for score in scores])
    lines = [
        [s.task, metric, str(Estimate(*values)), str(s.num_examples)]
        for s in scores
        for metric, values in {s.metric: (s.value, s.low, s.high), **s.also}.items()
    ]
    console.table(("benchmark", "metric", "% [95 % interval]", "items"), lines)
    console.say(f"answers: {next_steps.display_path(directory / 'scores')}")
    next_steps.print_next_steps(
        ("read them", next_steps.pipeline_command("show_scores", directory))
    )
    return 0


def _needless(config: SweepConfig) -> list[str]:
    """The checks that only training needs; among them, for a base model, a chat template."""
    training = ["data", "arms", "disk", "MLflow store", "training", "memory", "devices"]
    benchmarks = load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)
    as_base = all(benchmark.style == "completion" for benchmark in benchmarks)
    return [*training, "model"] if as_base else training


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["score", *sys.argv[1:]]))
