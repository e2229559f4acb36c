"""A model with a vision tower, trained on text: the tower stays as it was, with its processor."""

import json
from pathlib import Path

import torch

from otr import LoraConfig, ModelConfig, Objective, load_model
from otr.loop.checkpoint import Snapshot
from otr.loop.loop import train
from otr.models.lora import add_adapters
from otr.models.processor import FILES
from otr.models.structure import decoder_layers, towers
from tests.assets.tiny import byte_tokenizer
from tests.otr.models.families import MODELS, toy
from tests.otr.models.support import weights
from tests.otr.runs import batches, config


def vision_model(directory: Path) -> ModelConfig:
    toy(MODELS["gemma3"].config()).save_pretrained(directory)
    for name in FILES[:2]:
        (directory / name).write_text(json.dumps({"file": name}))
    return ModelConfig(str(directory))


def test_the_tower_is_no_part_of_training_and_part_of_the_checkpoint(tmp_path: Path) -> None:
    base = vision_model(tmp_path / "base")
    model = load_model(base)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all("vision_tower" in n or "projector" in n for n in frozen)
    assert len(decoder_layers(model)) == 2, "the tower has three layers"

    def report(_: object, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            snapshot.write(tmp_path / "out", byte_tokenizer())

    train(model, batches(1), config(tmp_path / "base", Objective("sft"), 1), report)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if "vision" in name or "projector" in name}
    for name in FILES[:2]:
        assert json.loads((tmp_path / "out" / name).read_text()) == {"file": name}
    assert not (tmp_path / "out" / FILES[2]).exists()


def test_targets_by_name_leave_the_tower_out(tmp_path: Path) -> None:
    base = load_model(vision_model(tmp_path))
    assert any("vision" in name and "q_proj" in name for name, _ in base.named_modules())
    adapted = add_adapters(base, LoraConfig(rank=2, targets=("q_proj",)))
    names = [name for name, _ in adapted.named_parameters() if "lora" in name]
    assert names and not any("vision" in name for name in names)


def test_a_model_of_text_alone_has_no_tower(tmp_path: Path) -> None:
    for name, family in MODELS.items():
        found = [*towers(toy(family.config()))]
        assert bool(found) == (name == "gemma3"), name
