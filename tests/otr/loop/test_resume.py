"""Runs resume bitwise with each optimizer; a run ends when its patience is used up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from otr import ModelConfig, Objective, OptimConfig, TrainConfig
from otr._compat import tree_leaves
from otr.loop.checkpoint import Snapshot, check_checkpoint, load_checkpoint
from otr.loop.loop import train
from otr.loop.progress import Progress, is_over
from otr.models.load import load_model
from otr.models.tokenizer import load_tokenizer
from otr.optim import OPTIMIZERS
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


class Recorder:
    """Keeps reports and writes checkpoints."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.log = directory, []
        self.saved: list[int] = []
        self.last: Snapshot | None = None

    def __call__(self, metrics: dict[str, float], snapshot: Snapshot | None) -> None:
        self.log.append(metrics)
        if snapshot is not None:
            tokenizer = load_tokenizer(ModelConfig(str(snapshot.model.config._name_or_path)))
            snapshot.write(self.directory / f"step-{snapshot.step}", tokenizer)
            self.saved.append(snapshot.step)
            self.last = snapshot


def held_out() -> list[dict[str, torch.Tensor]]:
    """Return rows whose answers hold a token that training never has."""
    (batch,) = batches(1)
    return [batch | {"input_ids": batch["input_ids"].masked_fill(batch["loss_mask"], 252)}]


def resumed(run: TrainConfig, first: Recorder, step: int, to: Path) -> Recorder:
    """Train again from a checkpoint of another run."""
    checkpoint, again = first.directory / f"step-{step}", Recorder(to)
    left = batches(run.max_steps)[step:]
    validation = held_out() if run.data.validation else ()
    model = load_model(ModelConfig(str(checkpoint)))
    train(model, left, run, again, resume_from=checkpoint, validation=validation)
    return again


def weights(recorder: Recorder, step: int) -> dict[str, torch.Tensor]:
    return load_file(recorder.directory / f"step-{step}" / "model.safetensors")


@pytest.mark.parametrize("freeze", [(), ("model.layers.0.*", "lm_head.*")], ids=["all", "frozen"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_resumes_bitwise(
    model_dir: Path, tmp_path: Path, optimizer: str, freeze: tuple[str, ...]
) -> None:
    optim = OptimConfig(lr=1e-2, warmup_steps=2, optimizer=optimizer, schedule="linear")
    run = config(model_dir, Objective("sft"), 4, checkpoint_interval=2, freeze=freeze)
    run = replace(run, optim=optim)
    whole = Recorder(tmp_path / "whole")
    train(load_model(run.model), batches(4), run, whole)
    again = resumed(run, whole, 2, tmp_path / "again")
    check_checkpoint(tmp_path / "again" / "step-4")
    expected, other = weights(whole, 4), weights(whole, 2)
    for name, tensor in weights(again, 4).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)
    assert any(not torch.equal(other[name], tensor) for name, tensor in expected.items())
    states = [tree_leaves(r.last.optimizer) for r in (whole, again) if r.last is not None]
    for one, two in zip(*states, strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert [m["loss"] for m in again.log] == [m["loss"] for m in whole.log[2:]]


def test_a_run_that_ended_with_rounded_weights_takes_no_step(
    model_dir: Path, tmp_path: Path
) -> None:
    run = config(model_dir, Objective("sft"), 2, save_dtype="bfloat16")
    first = Recorder(tmp_path / "first")
    train(load_model(run.model), batches(2), run, first)
    assert resumed(run, first, 2, tmp_path / "again").log == []


def rising(model_dir: Path, **changes: Any) -> TrainConfig:
    """Return a run that unlearns what it is evaluated on: val_nll rises from some step on."""
    run = config(model_dir, Objective("sft"), 20, eval_interval=2)
    data = replace(run.data, validation=("held out",))
    return replace(run, data=data, optim=OptimConfig(lr=1e-2, warmup_steps=0), **changes)


def test_a_run_ends_after_evaluations_without_a_lower_val_nll(
    model_dir: Path, tmp_path: Path
) -> None:
    run = replace(rising(model_dir, patience=2, save_dtype="bfloat16"), log_interval=3)
    recorder = Recorder(tmp_path)
    train(load_model(run.model), batches(20), run, recorder, validation=held_out())
    measured = [(m["step"], m["val_nll"]) for m in recorder.log if "val_nll" in m]
    assert [step for step, _ in measured] == [*range(2, 2 * len(measured) + 1, 2)]
    best = min(measured, key=lambda each: each[1])[0]
    last = recorder.log[-1]
    assert last["step"] == best + 4 < 20 and last["ended_early"] == 1
    assert [m["step"] for m in recorder.log if "ended_early" in m] == [last["step"]]
    assert is_over(last, 20) and not is_over(recorder.log[-2], 20)
    assert recorder.saved == [last["step"]]
    assert recorder.last is not None and recorder.last.probe is not None
    state = load_checkpoint(tmp_path / f"step-{last['step']}")
    assert state["dtype"] == "bfloat16" and state["stale_evaluations"] == 2


def test_patience_survives_a_resume(model_dir: Path, tmp_path: Path) -> None:
    """Also between two evaluations; a run that has ended takes no step."""
    run = rising(model_dir, patience=3, checkpoint_interval=1)
    whole = Recorder(tmp_path / "whole")
    train(load_model(run.model), batches(20), run, whole, validation=held_out())
    end = int(whole.log[-1]["step"])
    assert whole.log[-1]["ended_early"] == 1
    for step in (end - 1, end - 3):
        again = resumed(run, whole, step, tmp_path / str(step))
        assert [m["step"] for m in again.log] == [*range(step + 1, end + 1)]
        assert again.log[-1]["val_nll"] == whole.log[-1]["val_nll"]
        states = [load_checkpoint(r.directory / f"step-{end}") for r in (whole, again)]
        assert Progress.of(states[0]) == Progress.of(states[1])
        expected = weights(whole, end)
        assert all(torch.equal(t, expected[n]) for n, t in weights(again, end).items())
    assert resumed(run, whole, end, tmp_path / "over").log == []


def test_without_patience_or_improvement_a_run_takes_all_steps(
    model_dir: Path, tmp_path: Path
) -> None:
    recorder = Recorder(tmp_path)
    run = replace(rising(model_dir), max_steps=8)
    train(load_model(run.model), batches(8), run, recorder, validation=held_out())
    assert recorder.log[-1]["step"] == 8 and "ended_early" not in recorder.log[-1]


def test_progress_counts_evaluations() -> None:
    progress, found = Progress(), []
    for nll in (float("nan"), float("inf"), 3.0, 2.0, 2.0, float("nan"), 1.5, 1.6):
        progress = progress.evaluated(nll)
        found.append((progress.lowest_val_nll, progress.stale_evaluations))
    assert found[:2] == [(None, 1), (None, 2)]
    assert found[2:] == [(3.0, 0), (2.0, 0), (2.0, 1), (2.0, 2), (1.5, 0), (1.5, 1)]
    assert Progress.of({"step": 3, "skipped_steps": 1}) == Progress(3, 1)  # an old checkpoint
    state = json.loads(json.dumps({"step": 1, "skipped_steps": 0, "lowest_val_nll": 0.1 + 0.2}))
    assert Progress.of(state).lowest_val_nll == 0.1 + 0.2
