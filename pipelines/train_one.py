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
from pipelines.report import record
from pipelines.runtime import cluster
from pipelines.stages import serve_check, stages
from pipelines.tracking.tracker import Tracker, store_uri
from tuning.resources import trial_resources


def main(argv: Sequence[str]) -> int:
    """Train, or print what would be trained."""
    request = options.parse(argv, "otr train", single="train")
    if request.dry_run:
        with TemporaryDirectory() as scratch:
            record.dry_run(request.config, resolved(request.config, Path(scratch)))
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
    told = record.begin(config, directory)
    tracker = Tracker(store_uri(config.output), config.name, told["id"], directory)
    with (
        record.errors_to(directory),
        tracker.run(record.params(config), record.tags(told)) as outcome,
    ):
        needs = trial_resources(local.train.workers)
        with cluster.running(directory / "logs", cluster.places(local), needs):
            (result,) = stages.train(local, directory, tracker)
            if result.status == "failed" or result.checkpoint is None:
                raise ValueError(f"training failed: {result.error}")
            if prove:
                serve_check.prove(local, result.checkpoint, directory)
        outcome.ok = True
    from otr.training.checkpoint_store import best_checkpoint  # Ray Train's import takes seconds

    last = result.history[-1]
    figures = [f"{k} {last[k]:.4g}" for k in ("nll", "val_nll", "val_exact") if k in last]
    record.console.say(f"step {last['step']}: {', '.join(figures)}")
    checkpoint = Path(result.checkpoint)
    record.console.say(f"checkpoint: {record.shown(checkpoint)}")
    if (name := best_checkpoint(str(checkpoint.parent))) not in (None, checkpoint.name):
        record.console.say(f"lowest val_nll: {record.shown(checkpoint.with_name(str(name)))}")
    record.next_commands(
        ("score it", record.command("score_checkpoint", checkpoint)),
        ("its curves", record.command("ui", "--output", config.output)),
    )
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["train", *sys.argv[1:]]))
