"""One simulated sweep in this process, and what it cost: ``scale`` runs it for each size.

In: {"trials", "concurrent", "fresh", "directory"} as JSON, the first argument. Out: its figures as
JSON, the last line of stdout; the run as every sweep leaves it, in the directory.

`pipelines.full_sweep.run` runs whole: checks, Ray Tune with ASHA, MLflow, Serve, statistics,
report. Two things are replaced, what trains within a trial (`scale_trial`) and the model that
answers (`scale_coin`). Two are set: the number of logical CPUs, so that `concurrent` trials run at
once; and, but for `fresh`, that Tune reuses the processes of trials under ASHA, too, which stopped
trials of this kind allow: else most of the time would go into imports, the same for each trial.
On a busy machine more than one at once can undo that: a trial that waits for its process takes one
that has come free, and the other is started for nothing, again and again.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from ray import tune

import tuning.sweep
from evals.settings import EngineSettings, free_port
from otr.config import DataConfig, ModelConfig, TrainConfig
from pipelines import full_sweep
from pipelines.config.presets import SweepConfig
from pipelines.runtime import cluster
from tests.assets.tiny import make_tiny_model
from tests.benchmarks.scale_coin import RIGHT, in_place_of_vllm
from tests.benchmarks.scale_figures import figures, watched
from tests.benchmarks.scale_trial import run_trial, write_coin
from tuning.resources import total_resources, trial_resources
from tuning.settings import SearchSettings
from tuning.space import Trial, grid

BENCHMARKS = ("target", "retained-a", "retained-b")
ITEMS = 50
RATES = [float(f"{5e-5 * 40 ** (i / 9):.2g}") for i in range(10)]  # 5e-5 to 2e-3
GRACE_STEPS = 40


def main() -> None:
    print(json.dumps(simulated(**json.loads(sys.argv[1]))))


def simulated(trials: int, concurrent: int, fresh: bool, directory: str) -> dict[str, Any]:
    """The figures of a sweep of so many trials."""
    config = sweep_config(Path(directory), chosen(trials))
    logical_cpus = math.ceil(
        concurrent * total_resources(trial_resources(config.train.workers))["CPU"]
    )
    plain = tuning.sweep._tune_config

    def tune_config(*args: Any) -> tune.TuneConfig:
        return replace(plain(*args), reuse_actors=not fresh)

    with (
        in_place_of_vllm(),
        patch.object(tuning.sweep, "run_trial", run_trial),
        patch.object(tuning.sweep, "_tune_config", tune_config),
        patch.object(cluster, "logical_cpus", lambda _: logical_cpus),
        watched(Path(config.output)) as spent,
    ):
        code = full_sweep.run(config)
    if code:
        raise RuntimeError(f"a trial of {directory} failed")
    return {"fresh": fresh} | figures(config, spent, concurrent)


def sweep_config(root: Path, trials: Sequence[Trial]) -> SweepConfig:
    """A sweep of coins, with a corpus and benchmarks beside it."""
    model = make_tiny_model(root / "model")
    write_coin(model, 0.1)
    corpus = _written(
        root / "rows.jsonl",
        [{"prompt": f"{i} + 1?", "completion": f"It is {i + 1}."} for i in range(200)],
    )
    for name in BENCHMARKS:
        tosses = [{"prompt": f"{name}, toss {i}?", "answer": RIGHT} for i in range(ITEMS)]
        _written(root / f"{name}.jsonl", tosses)
    return SweepConfig(
        name=f"scale-{len(trials)}",
        train=TrainConfig(
            ModelConfig(str(model)),
            DataConfig((corpus,), validation=(corpus,), sequence_length=64),
            max_steps=120,
            global_batch_size=8,
            micro_batch_size=8,
            eval_interval=40,
        ),
        trials=tuple(trials),
        search=SearchSettings("asha", grace_steps=GRACE_STEPS),
        engine=EngineSettings(port=free_port()),
        benchmarks=tuple(f"file:{root / name}.jsonl" for name in BENCHMARKS),
        output=str(root / "runs"),
    )


def chosen(count: int) -> list[Trial]:
    """So many trials, two seeds an arm, a fiftieth of them SFT; each time the same.

    Raises:
        ValueError: there are fewer.
    """
    rates = {"optim.lr": RATES}
    settings = {
        "objective.num_samples": [1, 4, 16, 64, 256],
        "objective.mismatch_reward": [-1.0, -0.5, -0.1, -0.01, 0.0],
        "objective.temperature": [1.0, 1.3],
    }
    sft = grid("sft-lr{lr}", (0, 1), **{"objective.name": "sft"}, **rates)
    name = "otr-k{num_samples}-b{mismatch_reward}-t{temperature}-lr{lr}"
    otr = grid(name, (0, 1), **settings, **rates)
    found = [*_shuffled(sft)[: max(2, count // 50)], *_shuffled(otr)][:count]
    if len(found) < count:
        raise ValueError(f"{count} trials are asked for: there are {len(found)}")
    Random(1).shuffle(found)
    return found


def _shuffled(trials: Sequence[Trial]) -> list[Trial]:
    """The seeds of an arm stay together."""
    pairs = [trials[i : i + 2] for i in range(0, len(trials), 2)]
    Random(0).shuffle(pairs)
    return [trial for pair in pairs for trial in pair]


def _written(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


if __name__ == "__main__":
    main()
