"""One simulated sweep in this process, and its cost; ``scale`` runs it once per size.

The argument is JSON {"trials", "concurrent", "fresh", "directory"}; the last line of stdout is the
figures as JSON. The directory has the run as every sweep leaves it.

All of `pipelines.full_sweep.sweep` is real: checks, Ray Tune with ASHA, MLflow, Serve, statistics,
report. Two things are replaced: training within a trial (`scale_trial`) and the model that answers
(`scale_coin`). Nothing is measured besides accuracy, since a coin has no logits. Two are set: the
number of logical CPUs, so that `concurrent` trials run at once; and, except with `fresh`, Tune
reuses processes under ASHA too, as simulated trials allow. Otherwise most of the time would go into
imports, the same for each trial. With several trials at once on a busy machine reuse may fail: a
trial that waits for its new process takes one that becomes free, and the new one was started for
nothing.
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
from pipelines.stages import measure
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
    """Run a sweep of so many trials and return its figures."""
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
        patch.object(measure, "measure_models", lambda *_: measure.Outcome()),
        watched(Path(config.output)) as spent,
    ):
        code = full_sweep.sweep(config)
    if code:
        raise RuntimeError(f"a trial of {directory} failed")
    return {"fresh": fresh} | figures(config, spent, concurrent)


def sweep_config(root: Path, trials: Sequence[Trial]) -> SweepConfig:
    """Return a sweep of coins, with its corpus and benchmarks written."""
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
        engine=EngineSettings(
            dtype="float32", threads=1, kv_cache_gib=1.0, port=free_port(), max_model_len=1024
        ),
        benchmarks=tuple(f"file:{root / name}.jsonl" for name in BENCHMARKS),
        output=str(root / "runs"),
    )


def chosen(count: int) -> list[Trial]:
    """Return `count` trials, the same each time: two seeds per arm, a fiftieth of them SFT.

    Raises:
        ValueError: the grid has fewer.
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
        raise ValueError(f"{count} trials were asked for, there are {len(found)}")
    Random(1).shuffle(found)
    return found


def _shuffled(trials: Sequence[Trial]) -> list[Trial]:
    """Shuffle the arms; the seeds of an arm stay together."""
    pairs = [trials[i : i + 2] for i in range(0, len(trials), 2)]
    Random(0).shuffle(pairs)
    return [trial for pair in pairs for trial in pair]


def _written(path: Path, rows: Sequence[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


if __name__ == "__main__":
    main()
