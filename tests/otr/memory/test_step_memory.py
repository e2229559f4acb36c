"""No step, snapshot or evaluation makes a tensor of all tokens by the vocabulary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from otr import ModelConfig, Objective
from otr._compat import TorchDispatchMode, tree_leaves
from otr.loop import policy
from otr.loop.loop import train
from otr.loss import fused
from otr.models.load import load_model
from tests.assets.tiny import make_tiny_model
from tests.otr.runs import batches, config

VOCABULARY, ROWS = 8192, 16  # ROWS of logits at once


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.entries = max([self.entries, *sizes])
        return out


@pytest.mark.parametrize("objective", [Objective("sft"), Objective(num_samples=8)])
def test_the_largest_tensor_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Objective
) -> None:
    monkeypatch.setitem(fused.CHUNK_BYTES, "cpu", ROWS * VOCABULARY * 4)
    monkeypatch.setattr(policy, "SCORED_AT_ONCE", ROWS)
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path / "tiny"))))
    model.resize_token_embeddings(VOCABULARY)
    weight = VOCABULARY * model.config.hidden_size
    (batch,) = batches(1)
    scored = int(batch["loss_mask"].sum())
    run = config(tmp_path / "tiny", objective, 1)
    run = replace(run, data=replace(run.data, validation=("held out",)))
    with Largest() as largest:
        train(model, [batch], run, lambda *_: None, validation=[batch])
    assert weight <= largest.entries, "the head's gradient was not recorded"
    assert largest.entries < scored * VOCABULARY / 2
    assert largest.entries <= max(weight, ROWS * VOCABULARY)
