"""Invalid settings are refused with a remedy when a config is made."""

from dataclasses import replace
from typing import Any

import pytest

from otr import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    Workers,
)

RUN = TrainConfig(ModelConfig("model"), DataConfig(("data",)))


@pytest.mark.parametrize(
    ("count", "remedy"), [(8, " = 32 x 8, or micro_batch_size 4"), (5, " = 32 x 5")]
)
def test_workers_that_need_another_micro_batch_size(count: int, remedy: str) -> None:
    with pytest.raises(
        ValueError, match=rf"global_batch_size is 32: use a multiple of .*{remedy}$"
    ):
        replace(RUN, workers=Workers(count))


def test_every_number_of_workers_must_divide_the_batch() -> None:
    run = replace(RUN, micro_batch_size=2, global_batch_size=24)
    assert replace(run, workers=Workers(4, min_count=2)).accumulation == 3
    message = r"24: any number of workers from workers.min_count 4 to workers.count 6 .* of 120"
    with pytest.raises(ValueError, match=message):
        replace(run, workers=Workers(6, min_count=4))
    for fewest in (-1, 3):
        with pytest.raises(ValueError, match=f"min_count is {fewest}: use 0 .* to 2"):
            Workers(2, min_count=fewest)


@pytest.mark.parametrize(
    ("part", "name", "value", "remedy"),
    [
        ("", "max_steps", 0, "at least 1"),
        ("", "log_interval", 0, "at least 1"),
        ("", "eval_interval", 0, "at least 1"),
        ("", "checkpoint_interval", -1, "use 0"),
        ("", "checkpoint_minutes", -0.5, "use 0"),
        ("", "save_dtype", "float16", "use 'float32' or 'bfloat16'"),
        ("", "global_batch_size", 0, "a multiple of"),
        ("", "global_batch_size", 33, "a multiple of .*, or micro_batch_size 1$"),
        ("", "micro_batch_size", -32, "a multiple of .*, or micro_batch_size 32$"),
        ("optim", "lr", 0.0, "a number > 0"),
        ("optim", "lr", float("nan"), "a number > 0"),
        ("optim", "warmup_steps", -1, "0 or more"),
        ("optim", "final_lr", -0.1, "0 to 1"),
        ("optim", "final_lr", 1.1, "0 to 1"),
        ("optim", "weight_decay", -0.1, "0 or more"),
        ("optim", "max_grad_norm", 0.0, "a number > 0"),
        ("optim", "optimizer", "sgd", "use 'adamw', 'adamw_8bit', 'muon' or 'adafactor'"),
        ("optim", "betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("optim", "betas", (0.9,), "two numbers from 0 to below 1"),
        ("optim", "eps", 0.0, "a number > 0"),
        ("optim", "schedule", "step", "use 'cosine', 'linear', 'constant' or 'wsd'"),
        ("optim", "decay_share", 0.0, "more than 0, up to 1"),
        ("optim", "decay_share", 1.1, "more than 0, up to 1"),
        ("", "patience", -1, "use 0"),
        ("", "patience", 2, "set data.validation"),
        ("workers", "count", 0, "at least 1"),
        ("workers", "cpus", 0.0, "a number > 0"),
        ("workers", "gpus", -1.0, "use 0"),
        ("workers", "gpus", 1.5, "part of one GPU, or a whole number"),
        ("data", "paths", (), "name a file"),
        ("data", "sequence_length", 7, "at least 8"),
        ("data", "max_rejected", 1.1, "0 to 1"),
    ],
)
def test_invalid_settings_are_refused(part: str, name: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy) as error:
        replace(getattr(RUN, part) if part else RUN, **{name: value})
    message = str(error.value)
    assert (f"{part}.{name}" if part else name) in message
    if value != ():
        assert str(value) in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ("q",)}, r"lora\.targets is \('q',\), but there are no adapters"),
        ({"rs": True}, r"lora\.rs is True, but there are no adapters: give a lora\.rank above 0"),
        ({"dora": True}, r"lora\.dora is True, but there are no adapters"),
        ({"modules_to_save": ("lm_head",)}, r"lora\.modules_to_save is \('lm_head',\), but"),
        ({"quantize": "nf4"}, r"lora\.quantize is 'nf4', but there are no adapters"),
        ({"rank": 4, "quantize": "nf8"}, r"lora\.quantize is 'nf8': use 'none' or 'nf4'"),
        ({"rank": 4, "targets": ("a", "b"), "modules_to_save": ("b",)}, "remove it from lora.targ"),
    ],
)
def test_invalid_adapters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoraConfig(**settings)


def test_a_model_in_4_bits_is_not_sharded() -> None:
    four_bits = replace(RUN, lora=LoraConfig(4, quantize="nf4"))
    for strategy in ("fsdp", "fsdp_offload"):
        with pytest.raises(ValueError, match=rf"'{strategy}', but a model in 4 bits .*use 'ddp'"):
            replace(four_bits, memory=MemoryConfig(strategy))


def test_the_names_of_methods() -> None:
    made = {
        LoraConfig(**settings).method
        for settings in (
            {},
            {"rank": 4},
            {"rank": 4, "rs": True},
            {"rank": 4, "dora": True},
            {"rank": 4, "quantize": "nf4"},
            {"rank": 4, "rs": True, "dora": True, "quantize": "nf4"},
        )
    }
    assert made == {"all weights", "LoRA", "rsLoRA", "DoRA", "QLoRA", "QrsDoRA"}


def test_the_smallest_allowed_settings() -> None:
    optim = OptimConfig(warmup_steps=0, final_lr=0.0, weight_decay=0.0)
    smallest = {
        "max_steps": 1,
        "global_batch_size": 1,
        "micro_batch_size": 1,
        "log_interval": 1,
        "eval_interval": 1,
    }
    assert replace(RUN, optim=optim, workers=Workers(1, 0.5, 0.0), **smallest).accumulation == 1


def test_weights_stand_at_the_ends_of_paths() -> None:
    mixed = DataConfig(("a.jsonl@0.3", "hf:b@0.7"))
    assert (mixed.paths, mixed.weights) == (("a.jsonl", "hf:b"), (0.3, 0.7))
    assert replace(mixed, sequence_length=64) == DataConfig(
        ("a.jsonl", "hf:b"), weights=(0.3, 0.7), sequence_length=64
    )
    assert DataConfig(("s3://user@host/a",)).weights == ()
    assert DataConfig(("a@0.3", "b@1"), validation=("c",)).of_validation.paths == ("c",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": ("a@0.3", "b")}, "'b' has no weight: give each path one, or none"),
        ({"paths": ("a@0",)}, r"data.weights is \(0.0,\): use numbers > 0"),
        ({"paths": ("a", "b"), "weights": (1.0,)}, "1 values for 2 paths: give one for each"),
        ({"paths": tuple(f"{n}@1" for n in range(17))}, "has 17 values: use at most 16"),
        ({"paths": ("a@1", "a@2")}, "'a' has two weights: give it one"),
    ],
)
def test_weights_that_do_not_fit_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)
