"""A step that does not fit into memory is refused, with options under which it fits."""

from dataclasses import replace

import pytest

from otr.config import MemoryConfig, TrainConfig
from pipelines import cli
from pipelines.checks import memory
from pipelines.config.presets import SweepConfig


def test_a_step_that_fits_is_described(config: SweepConfig) -> None:
    text = memory.check_memory(config)
    assert "GiB on each device, strategy single, 2048 tokens per step" in text


def test_too_little_memory(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    need = memory.plan(config.train, 2**40).device.total
    monkeypatch.setattr(memory, "device_bytes", lambda workers: need)
    with pytest.raises(ValueError, match=r"too little .*give --train\.memory\.gradient-check"):
        memory.check_memory(config)
    memory.print_memory(config.train)
    table = capsys.readouterr().out
    assert "as configured" in table and "suggested" in table and "micro batches per step" in table
    assert "give --train.memory.gradient-checkpointing" in table
    monkeypatch.setattr(memory, "device_bytes", lambda workers: 1000)
    with pytest.raises(ValueError, match=r"nothing fits: .*--train\.lora\.rank"):
        memory.check_memory(config)


def test_suggested_options_give_the_suggested_configuration(config: SweepConfig) -> None:
    train: TrainConfig = config.train
    other = replace(
        train,
        memory=MemoryConfig("single", True),
        micro_batch_size=2,
        data=replace(train.data, sequence_length=128),
    )
    flags = memory._options_for(train, other, memory.plan(other, 2**40), 2**40)
    words = " ".join(flags).split()
    parsed = cli.parse(["doctor", "--preset", "debug", *words]).load().train
    assert parsed.memory.gradient_checkpointing and parsed.micro_batch_size == 2
    assert parsed.data.sequence_length == 128 and parsed.accumulation == 4
