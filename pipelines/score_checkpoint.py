"""Score any Hugging Face directory, or model on the hub.

In: the directory, and benchmarks. Out: a table, and `<output>/<name>/scores.json` with every answer
beside it in `scores/`. The same command again takes what is there.

    python pipelines/score_checkpoint.py DIRECTORY --benchmarks gsm8k --benchmark-dir benchmarks
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipelines import cluster, console, doctor, leaderboard, options, record, stages
from pipelines.builtin import corpus
from pipelines.leaderboard import Estimate
from pipelines.presets import SweepConfig
from pipelines.resolve import resolved


def main(argv: Sequence[str]) -> int:
    """Score the model that the first argument names."""
    words = list(argv)
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
    training = ("data", "arms", "disk", "MLflow store", "training", "memory", "devices")
    doctor.require(local, without=training)
    record.begin(config, directory)
    with record.errors_to(directory), cluster.running(directory / "logs", cluster.places(local)):
        models = {"model": local.train.model.path}
        (scores,) = stages.score_models(models, local, directory, lambda *_: None).values()
    leaderboard.write_json(directory / "scores.json", [asdict(score) for score in scores])
    lines = [
        [s.task, s.metric, str(Estimate(s.value, s.low, s.high)), str(s.num_examples)]
        for s in scores
    ]
    console.table(("benchmark", "metric", "% [95 % interval]", "items"), lines)
    console.say(f"answers: {record.shown(directory / 'scores')}")
    return 0


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["score", *sys.argv[1:]]))
