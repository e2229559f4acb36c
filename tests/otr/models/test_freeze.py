"""Frozen parameters do not change; patterns that make no sense are refused with the nearest."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from otr import LoraConfig, ModelConfig, Objective, load_model
from otr.loop import train
from otr.loop.checkpoint import Snapshot
from otr.models.freeze import freeze, freeze_equally
from otr.models.load import empty_model
from otr.models.tokenizer import load_tokenizer
from tests.assets.tiny import make_tiny_model
from tests.otr.models.families import make_family
from tests.otr.runs import batches, config


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tied") / "tiny")


def frozen(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
@pytest.mark.parametrize("pattern", ["lm_head.*", "model.embed_tokens.*"])
def test_tied_weights_are_one_parameter(tmp_path: Path, family: str, pattern: str) -> None:
    model = load_model(ModelConfig(str(make_family(tmp_path, family))))
    freeze(model, (pattern,))
    assert frozen(model) == {"model.embed_tokens.weight"}
    assert not model.lm_head.weight.requires_grad


def test_patterns_choose_layers_and_parts(tied: Path) -> None:
    model = load_model(ModelConfig(str(tied)))
    freeze(model, ("model.layers.[1-7].mlp.*", "*norm.weight"))
    names = {name for name, _ in model.named_parameters()}
    norms = {name for name in names if name.endswith("norm.weight")}
    assert frozen(model) == norms | {n for n in names if n.startswith("model.layers.1.mlp.")}


def test_wrong_patterns_are_refused(tied: Path) -> None:
    model = empty_model(ModelConfig(str(tied)))
    with pytest.raises(ValueError, match=r"matches 'model.layer.\*': did you mean 'model.layers"):
        freeze(model, ("model.norm.*", "model.layer.*"))
    with pytest.raises(ValueError, match=r"freeze is model.\* lm_head.\*, which matches all"):
        freeze(model, ("model.*", "lm_head.*"))
    run = config(tied, Objective("sft"), 1)
    with pytest.raises(ValueError, match=r"freeze is model.norm.\* with lora.rank 2: "):
        replace(run, freeze=("model.norm.*",), lora=LoraConfig(rank=2))


@pytest.mark.parametrize(
    "patterns",
    [("model.embed_tokens.*", "model.layers.0.*"), ("model.layers.*", "model.norm.*")],
    ids=["lower part", "all but embeddings"],
)
@pytest.mark.parametrize("again", [False, True], ids=["stored", "checkpointed"])
def test_only_the_rest_learns_and_the_checkpoint_is_complete(
    tied: Path, tmp_path: Path, patterns: tuple[str, ...], again: bool
) -> None:
    run = config(tied, Objective("sft"), 2, freeze=patterns)
    run = replace(run, memory=replace(run.memory, gradient_checkpointing=again))
    model, tokenizer = load_model(run.model), load_tokenizer(run.model)
    taken: list[Snapshot] = []
    train(model, batches(2), run, lambda _, snapshot: snapshot and taken.append(snapshot))
    [snapshot] = taken
    snapshot.write(tmp_path / "step", tokenizer)  # checks it against the model in training
    before, after = (
        load_file(tied / "model.safetensors"),
        load_file(tmp_path / "step/model.safetensors"),
    )
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == frozen(model) != set()
    groups = snapshot.optimizer["param_groups"]
    assert {f"model.{n}" for n in before.keys() - same} == {n for g in groups for n in g["params"]}
    assert snapshot.optimizer["state"].keys() == {f"model.{n}" for n in before.keys() - same}


def test_a_shorter_model_is_frozen_like_a_longer_one(tied: Path) -> None:
    long = empty_model(ModelConfig(str(tied)))
    freeze(long, ("model.embed_tokens.*", "model.layers.0.*", "model.layers.*.mlp.*"))
    short = empty_model(ModelConfig(str(tied)))
    short.model.layers = short.model.layers[:1]
    freeze_equally(short, long)
    assert {name.replace(".weight", "") for name in frozen(short)} == {
        "model.embed_tokens",
        *(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")),
    }
