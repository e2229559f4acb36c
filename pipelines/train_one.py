"""Fine-tune one model.

In: a preset's training part and what is to be changed in it. Out: `<output>/<name>/` with run.json
and the checkpoint, a Hugging Face directory; a run in MLflow. The same name again continues.

    python pipelines/train_one.py --model DIRECTORY --data train.jsonl --train.objective.name otr
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.builtin import corpus
from pipelines.checks import preflight
from pipelines.config import options
from pipelines.config.presets import SweepConfig
from pipelines.config.resolve import resolved
from pipelines.report import terminal
from pipelines.runtime import cluster, console, next_steps, run_directory
from pipelines.stages import serve_check, stages
from pipelines.tracking.tracker import Tracker, store_uri
from tuning.resources import trial_resources


def main(argv: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    request = options.parse(argv, "otr train", single="train")
    if request.dry_run:
        with TemporaryDirectory() as scratch:
            terminal.print_dry_run(request.config, resolved(request.config, Path(scratch)))
        return 0
    return run(request.config, prove=request.prove)


def run(config: SweepConfig, *, prove: bool) -> int:
    """Train the config's only trial, and let vLLM serve it; returns the exit code.

    Raises:
        ValueError: a check failed, training failed, the directory holds another run, or vLLM does
            not serve what was saved.
    """
    directory = Path(config.output).absolute() / config.name
    local = resolved(config, corpus.folder(config.output))
    preflight.require(local, without=("benchmarks", "engine", "port"))
    told = run_directory.open_run(config, directory)
    tracker = Tracker(store_uri(config.output), config.name, told["id"], directory)
    with (
        run_directory.log_errors(directory),
        tracker.run(
            run_directory.mlflow_params(config), run_directory.mlflow_tags(told)
        ) as outcome,
    ):
        needs = trial_resources(local.train.workers)
        with cluster.ray_session(directory / "logs", cluster.logical_cpus(local), needs):
            (result,) = stages.train(local, directory, tracker)
            if result.status == "failed" or result.checkpoint is None:
                raise ValueError(f"training failed: {result.error}")
            if prove:
                serve_check.prove(local, result.checkpoint, directory)
        outcome.ok = True
    from otr.training.checkpoint_store import best_checkpoint  # Ray Train's import takes seconds

    last = result.history[-1]
    figures = [f"{k} {last[k]:.4g}" for k in ("nll", "val_nll", "val_exact") if k in last]
    console.say(f"step {last['step']}: {', '.join(figures)}")
    checkpoint = Path(result.checkpoint)
    console.say(f"checkpoint: {next_steps.display_path(checkpoint)}")
    if (name := best_checkpoint(str(checkpoint.parent))) not in (None, checkpoint.name):
        console.say(f"lowest val_nll: {next_steps.display_path(checkpoint.with_name(str(name)))}")
    next_steps.print_next_steps(
        ("score it", next_steps.pipeline_command("score_checkpoint", checkpoint)),
        ("its curves", next_steps.pipeline_command("ui", "--output", config.output)),
    )
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["train", *sys.argv[1:]]))
