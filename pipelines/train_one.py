"""Fine-tune one model.

It writes `<output>/<name>/`: run.json and checkpoints, which are Hugging Face directories; and a
run in MLflow. The same name again resumes the run.

    python pipelines/train_one.py --model DIRECTORY --data train.jsonl --train.objective.name otr
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines.checks import preflight
from pipelines.config import defaults
from pipelines.config.prepared import prepare, prepare_temporarily
from pipelines.config.presets import SweepConfig
from pipelines.report import terminal
from pipelines.runtime import cluster, console, next_steps, run_directory
from pipelines.stages import serve_check
from pipelines.stages.train import train
from pipelines.tracking.recorded_run import recorded_run
from tuning.resources import trial_resources

if TYPE_CHECKING:
    from pipelines.config.commands import Train
    from tuning.sweep import TrialResult


def run(command: "Train") -> int:
    """Train, or print what would be trained; return the exit code.

    Raises:
        ValueError: an option or a check failed, training failed, the directory holds another run,
            or vLLM serves something else than what was saved.
    """
    config = command.load()
    if command.dry_run:
        with prepare_temporarily(config) as prepared:
            terminal.print_dry_run(config, prepared)
    else:
        _report(_train(config, check_served=command.serve_check), config)
    return 0


def _train(config: SweepConfig, *, check_served: bool) -> "TrialResult":
    """Train the configuration's only trial; return its result, which has a checkpoint."""
    from pipelines.tracking.trial_callbacks import report_metrics  # imports Ray Tune: a second

    prepared = prepare(config)
    directory = prepared.directory
    run_directory.check_free(directory)
    prepared = preflight.require(prepared, skip=("benchmarks", "engine", "port"))
    config = defaults.with_choices(config, prepared.config)
    params = run_directory.mlflow_params(config)
    with recorded_run(config, directory, params, config.trackers) as (_, tracker, outcome):
        terminal.print_choices(config, corpus=prepared.corpus)
        needs = trial_resources(config.train.workers)
        with cluster.ray_session(directory / "logs", cluster.logical_cpus(config), needs):
            (result,) = train(prepared, tracker)
            tracker.log_summary(report_metrics(result.history[-1] if result.history else {}))
            if result.status == "failed" or result.checkpoint is None:
                raise ValueError(f"training failed: {result.error}")
            if check_served:
                serve_check.check_served(prepared, Path(result.checkpoint))
        outcome.ok = True
    return result


def _report(result: "TrialResult", config: SweepConfig) -> None:
    """Print the last metrics, the checkpoints and what to do next."""
    from otr.training.checkpoint_store import best_checkpoint  # importing Ray Train takes seconds

    checkpoint, last = Path(str(result.checkpoint)), result.history[-1]
    metrics = [f"{k} {last[k]:.4g}" for k in ("nll", "val_nll", "val_exact") if k in last]
    console.say(f"step {last['step']}: {', '.join(metrics)}")
    console.say(f"checkpoint: {next_steps.display_path(checkpoint)}")
    if (name := best_checkpoint(str(checkpoint.parent))) not in (None, checkpoint.name):
        lowest = next_steps.display_path(checkpoint.with_name(str(name)))
        console.say(f"checkpoint with the lowest val_nll: {lowest}")
    next_steps.print_next_steps(
        ("score it", next_steps.score_command(checkpoint, config)),
        ("see its metrics", next_steps.pipeline_command("ui", "--output", config.output)),
    )


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["train", *sys.argv[1:]]))
