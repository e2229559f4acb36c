"""A model that can't be trained as configured is refused, with the option to change."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from otr.config import LoraConfig, MemoryConfig
from otr.models.structure import decoder_layers
from pipelines.checks import preflight
from pipelines.checks.model import check_training
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig
from tuning.space import Trial


def with_train(config: SweepConfig, **changes: Any) -> SweepConfig:
    return replace(config, train=replace(config.train, **changes))


def test_a_valid_configuration_is_described(config: SweepConfig) -> None:
    assert check_training(config) == "float32, sequence length 256 of at most 1024"
    adapted = with_train(config, lora=LoraConfig(rank=4), memory=MemoryConfig("fsdp"))
    assert "trained weights in LoRA adapters, sharded by 2 layers" in check_training(adapted)


def test_preflight_includes_the_training_check(config: SweepConfig) -> None:
    wrong = with_train(config, data=replace(config.train.data, sequence_length=2048))
    skip = ("port", "benchmarks", "engine", "data", "packages")
    bad = [f for f in preflight.check(PreparedRun(wrong), with_ray=False, skip=skip) if not f.ok]
    assert [f.check for f in bad] == ["training"]
    assert "sequence_length is 2048" in bad[0].text and "1024 positions" in bad[0].text
    assert "--train.data.sequence-length 1024" in bad[0].text


def test_unknown_attention(config: SweepConfig) -> None:
    wrong = with_train(config, model=replace(config.train.model, attention="flash"))
    with pytest.raises(ValueError, match=r"'flash': use one of auto, eager, .*flash_attention_2"):
        check_training(wrong)


def test_attention_without_float32(config: SweepConfig) -> None:
    wrong = with_train(config, model=replace(config.train.model, attention="flash_attention_2"))
    with pytest.raises(ValueError, match=r"no float32: give --train.model.dtype bfloat16"):
        check_training(wrong)


def test_model_without_layers_cannot_be_sharded() -> None:
    with pytest.raises(ValueError, match=r"Linear has no list of layers.* ddp or"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_kinds_of_adapters_are_named_and_checked(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraConfig(rank=4, rs=True, quantize="nf4", modules_to_save=("lm_head",))
    assert "trained weights in QrsLoRA adapters and modules" in check_training(
        with_train(config, lora=lora)
    )
    wrong = with_train(config, lora=replace(lora, modules_to_save=("lm_hed",)))
    with pytest.raises(ValueError, match=r"'lm_hed': did you mean lm_head"):
        check_training(wrong)
    monkeypatch.setattr("otr.models.quantize.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package bitsandbytes"):
        check_training(with_train(config, lora=lora))


def test_frozen_parameters_are_counted_and_packages_looked_for(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = with_train(config, freeze=("model.layers.*", "lm_head.*"))
    expected = ", without model.layers.* lm_head.* 64 of 90752 weights trained"  # the last norm
    assert check_training(frozen).endswith(expected)
    with pytest.raises(ValueError, match=r"matches 'model.layer.*': did you mean 'model.layers"):
        check_training(with_train(config, freeze=("model.layer.*",)))
    monkeypatch.setattr("otr.optim.optimizers.find_spec", lambda name: None)
    arms = (Trial("a"), Trial("b", {"optim.optimizer": "adamw_8bit"}))
    with pytest.raises(ValueError, match="bitsandbytes is not installed"):
        check_training(replace(config, trials=arms))


def test_adapters_for_an_unknown_layer(config: SweepConfig) -> None:
    wrong = with_train(config, lora=LoraConfig(rank=4, targets=("q_prj",)))
    with pytest.raises(ValueError, match=r"'q_prj'.*q_proj"):
        check_training(wrong)
