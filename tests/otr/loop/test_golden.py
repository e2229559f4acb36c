"""Losses of 20 steps of the tiny model with each objective equal the stored golden ones.

A change that should not change numbers leaves the file as it is. A change that should is explained
in its commit, which updates the file by `python -m tests.otr.loop.test_golden`.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import torch

from otr import ModelConfig, Objective, OptimConfig
from otr.loop.loop import train
from otr.loss.objective import names
from otr.models.load import as_base, load_model
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config, with_start

GOLDEN = Path(__file__).parents[2] / "assets" / "golden" / "losses.json"
STEPS = 20
OBJECTIVES = {
    "sft": Objective("sft"),
    "dft": Objective("dft"),
    "otr-sampled": Objective(num_samples=16),
    "otr-half": Objective(num_samples=16, estimator="half"),
    "otr-expected": Objective(estimator="expected"),
    "sft-smoothed-z": Objective("sft", label_smoothing=0.1, z_loss=1e-4),
    # The tiny model gives most tokens about this probability.
    "threshold": Objective("threshold", threshold=0.0036),
    "clipped": Objective("clipped", threshold=0.0036),
    **{name: Objective(name) for name in ("chord", "eaft", "idft", "power", "psft")},
    "asft": Objective("dft"),
}
KL_WEIGHTS = {"asft": 0.1}


def losses(model_dir: Path, objective: Objective, kl_weight: float = 0.0) -> list[float]:
    """Return the loss of each step, in float32 on one thread."""
    threads, made = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        model = load_model(ModelConfig(str(model_dir)))
        run = config(model_dir, objective, STEPS, kl_weight=kl_weight)
        base = as_base(load_model(run.model)) if kl_weight else None
        run = dataclasses.replace(run, optim=OptimConfig(lr=1e-3, warmup_steps=2))
        todo = batches(STEPS)
        if objective.needs_start:
            todo = with_start(model_dir, todo)
        train(model, todo, run, lambda metrics, _: made.append(metrics["loss"]), base=base)
    finally:
        torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_equal_the_golden_ones(name: str, model_dir: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == OBJECTIVES.keys()
    # Another CPU's rounding occasionally moves a draw over its border, which changes the loss by up
    # to 1e-4; different draws change it by 1e-2.
    draws = OBJECTIVES[name].draws_misses
    made = losses(model_dir, OBJECTIVES[name], KL_WEIGHTS.get(name, 0.0))
    assert made == pytest.approx(golden[name], rel=1e-3 if draws else 1e-5)


def test_every_objective_has_golden_losses() -> None:
    assert {objective.name for objective in OBJECTIVES.values()} == set(names())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        model_dir = make_tiny_model(Path(directory) / "tiny")
        made = {
            name: losses(model_dir, objective, KL_WEIGHTS.get(name, 0.0))
            for name, objective in OBJECTIVES.items()
        }
    GOLDEN.parent.mkdir(exist_ok=True)
    lines = [f'  "{name}": {json.dumps(values)}' for name, values in made.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
