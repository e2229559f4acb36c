"""A run that can't be trained as configured is refused at once, with what to pass instead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from otr.config import LoraConfig, MemoryConfig, TrainConfig, Workers
from otr.models.parts import decoder_layers
from pipelines.checks import machine, memory, preflight
from pipelines.checks.training import training
from pipelines.config import options
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import PRESETS, SweepConfig
from tests.assets.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def config(model: Path, tmp_path: Path) -> SweepConfig:
    start = PRESETS["debug"]()
    train = replace(start.train, model=replace(start.train.model, path=str(model)))
    return replace(start, output=str(tmp_path / "runs"), train=train)


def with_train(config: SweepConfig, **changes: Any) -> SweepConfig:
    return replace(config, train=replace(config.train, **changes))


def test_all_is_well(config: SweepConfig) -> None:
    assert training(config) == "rows of 256 of 1024 positions"
    adapted = with_train(config, lora=LoraConfig(rank=4), memory=MemoryConfig("fsdp"))
    assert "weights in adapters, split into 2 layers" in training(adapted)
    assert "GiB on each device with single, 2048 tokens a step" in memory.memory(config)


def test_it_is_one_of_the_checks(config: SweepConfig) -> None:
    wrong = with_train(config, data=replace(config.train.data, sequence_length=2048))
    without = ("port", "benchmarks", "data", "packages")
    bad = [f for f in preflight.check(PreparedRun(wrong), with_ray=False, without=without) if not f.ok]
    assert [f.check for f in bad] == ["training"]
    assert "sequence_length is 2048" in bad[0].text and "1024 positions" in bad[0].text
    assert "--train.data.sequence-length 1024" in bad[0].text


def test_an_attention_that_does_not_exist(config: SweepConfig) -> None:
    wrong = with_train(config, model=replace(config.train.model, attention="flash"))
    with pytest.raises(ValueError, match=r"'flash': use one of auto, eager, .*flash_attention_2"):
        training(wrong)


def test_an_attention_that_has_no_float32(config: SweepConfig) -> None:
    wrong = with_train(config, model=replace(config.train.model, attention="flash_attention_2"))
    with pytest.raises(ValueError, match=r"no float32: give --train.model.dtype bfloat16"):
        training(wrong)


def test_a_model_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"Linear has no list of layers.* ddp or"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_adapters_for_no_layer(config: SweepConfig) -> None:
    wrong = with_train(config, lora=LoraConfig(rank=4, targets=("q_prj",)))
    with pytest.raises(ValueError, match=r"'q_prj'.*q_proj"):
        training(wrong)


def test_more_workers_than_gpus(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    wrong = with_train(config, workers=Workers(4, gpus=1), micro_batch_size=1)
    with pytest.raises(ValueError, match=r"count is 4 with 1 GPUs each, .* has 2: .*count 2 or"):
        machine.devices(wrong)
    assert machine.devices(with_train(wrong, workers=Workers(4, gpus=0.5))) == "2 of 2 GPUs"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"--train\.workers\.gpus 0"):
        machine.devices(wrong)
    many = with_train(config, workers=Workers(8), micro_batch_size=1)
    assert machine.devices(many).startswith("8 logical CPUs")


def test_too_little_memory(
    config: SweepConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    need = memory.plan(config.train, 2**40).device.total
    monkeypatch.setattr(memory, "device_bytes", lambda workers: need)
    with pytest.raises(ValueError, match=r"too little .*give --train\.memory\.gradient-check"):
        memory.memory(config)
    memory.tell(config.train)
    table = capsys.readouterr().out
    assert "as configured" in table and "suggested" in table and "passes a step" in table
    assert "give --train.memory.gradient-checkpointing" in table
    monkeypatch.setattr(memory, "device_bytes", lambda workers: 1000)
    with pytest.raises(ValueError, match=r"nothing fits: .*--train\.lora\.rank"):
        memory.memory(config)


def test_what_is_suggested_can_be_passed(config: SweepConfig) -> None:
    train: TrainConfig = config.train
    other = replace(
        train,
        memory=MemoryConfig("single", True),
        micro_batch_size=2,
        data=replace(train.data, sequence_length=128),
    )
    flags = memory._flags(train, other, memory.plan(other, 2**40), 2**40)
    words = " ".join(flags).split()
    parsed = options.parse(["--preset", "debug", *words], "otr doctor").config.train
    assert parsed.memory.gradient_checkpointing and parsed.micro_batch_size == 2
    assert parsed.data.sequence_length == 128 and parsed.accumulation == 4


def test_a_file_that_a_node_can_not_reach(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert "No such file" in machine._visit(str(mark))
    mark.write_text("of another")
    assert "another file" in machine._visit(str(mark))
    mark.write_text("seen")
    assert machine._visit(str(mark)) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mark"], "it cleans up"


def test_every_node_of_a_cluster(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = machine.cluster(config)
        assert found == f"1 nodes, {config.output} on each"
        assert not Path(config.output).exists(), "it leaves nothing behind"
        with pytest.raises(ValueError, match="count is 4 with 1 CPUs each, but the cluster has 2"):
            machine.cluster(with_train(config, workers=Workers(4), micro_batch_size=1))
        monkeypatch.setattr(machine, "_visit", lambda mark: "read-only")
        with pytest.raises(ValueError, match=r"not the same on every node .*: read-only"):
            machine.cluster(config)
        monkeypatch.setattr(machine, "_versions", lambda: {"torch": "2.1.0"})
        with pytest.raises(ValueError, match=r"not every node .* has torch 2\.1\.0, the project 2"):
            machine.cluster(config)
    finally:
        ray.shutdown()
