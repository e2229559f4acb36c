"""What is chosen from the model and the machine where the engine's settings leave it open."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from evals import gpu, hardware, shards
from evals.hardware import GIB, Machine, fit
from evals.settings import EngineSettings
from tests.assets.tiny import make_tiny_model

OLD_CPU = Machine(cores=8, free_gib=16, fast_dtypes=frozenset())
AMX_CPU = Machine(cores=8, free_gib=16, fast_dtypes=frozenset({"bfloat16"}))
FLOAT16_CPU = Machine(cores=8, free_gib=16, fast_dtypes=frozenset({"float16"}))
OLD_GPU = Machine(8, 16, frozenset(), capability=(7, 5))
NEW_GPU = Machine(8, 16, frozenset(), capability=(9, 0))
REMOTE_GPU = Machine(8, 16, frozenset())
OPEN = EngineSettings(max_model_len=1000)
ON_GPU = EngineSettings(max_model_len=1000, gpus=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def store_dtype(model: Path, dtype: str | None) -> None:
    config = json.loads((model / "config.json").read_text())
    config.pop("torch_dtype", None)
    (model / "config.json").write_text(json.dumps(config | {"dtype": dtype}))


@pytest.mark.parametrize(
    ("stored", "settings", "machine", "expected"),
    [
        ("bfloat16", OPEN, AMX_CPU, "bfloat16"),
        ("bfloat16", OPEN, OLD_CPU, "float32"),
        ("float16", OPEN, FLOAT16_CPU, "float32"),
        ("float32", OPEN, AMX_CPU, "float32"),
        (None, OPEN, AMX_CPU, "float32"),
        ("bfloat16", ON_GPU, NEW_GPU, "bfloat16"),
        ("bfloat16", ON_GPU, REMOTE_GPU, "bfloat16"),
        ("bfloat16", ON_GPU, OLD_GPU, "float32"),
        ("float16", ON_GPU, OLD_GPU, "float16"),
        ("float32", ON_GPU, NEW_GPU, "float32"),
    ],
)
def test_the_data_type_is_the_models_if_it_is_fast(
    model: Path, stored: str | None, settings: EngineSettings, machine: Machine, expected: str
) -> None:
    store_dtype(model, stored)
    assert fit(settings, model, machine).dtype == expected


def test_given_values_stay(model: Path) -> None:
    given = EngineSettings("float32", 1000, threads=3, kv_cache_gib=0.5, concurrency=7)
    assert fit(given, model, OLD_CPU) == given
    assert given.requests_per_replica == 7
    assert EngineSettings(concurrency=7, num_replicas=2).requests_per_replica == 3


def test_a_data_type_that_the_gpu_lacks_is_refused(model: Path) -> None:
    bfloat16 = EngineSettings("bfloat16", 1000, gpus=1)
    with pytest.raises(ValueError, match=r"bfloat16.*capability 7\.5 lack: give .*float16"):
        fit(bfloat16, model, OLD_GPU)
    assert fit(bfloat16, model, NEW_GPU).dtype == "bfloat16"


def test_a_data_type_that_the_cpu_emulates_is_said_to_be_slow(model: Path) -> None:
    slow = fit(EngineSettings("bfloat16", 1000), model, OLD_CPU)
    assert slow.dtype == "bfloat16" and "slow" in hardware.describe(slow, OLD_CPU)
    assert "slow" not in hardware.describe(slow, AMX_CPU)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "gpus", "possible"),
    [
        (64, 8, 4, None),
        (64, 8, 16, None),  # each KV head is on two GPUs
        (64, 8, 3, "1, 2, 4, 8, 16"),
        (14, 2, 4, "1, 2, 14"),
        (12, 12, 8, "1, 2, 3, 4, 6, 12"),
        (9, 3, 2, "1, 3, 9"),
    ],
)
def test_a_model_is_divided_by_its_heads(
    model: Path, heads: int, kv_heads: int, gpus: int, possible: str | None
) -> None:
    config = json.loads((model / "config.json").read_text())
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    (model / "config.json").write_text(json.dumps(config | shape | {"intermediate_size": 5040}))
    settings = EngineSettings(max_model_len=99, gpus=gpus)
    if possible is None:
        (model / "config.json").write_text(json.dumps(config | shape | {"intermediate_size": 4096}))
        assert fit(settings, model, NEW_GPU).shards == gpus
        return
    with pytest.raises(ValueError, match=f"{heads} attention heads and {kv_heads} KV.*{possible}"):
        fit(settings, model, NEW_GPU)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid", None])
def test_damaged_weights_are_named(model: Path, content: bytes | None) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read .*; download it again"):
        hardware.count_weights(model)


def test_a_model_that_needs_several_gpus_is_told_how_many(model: Path) -> None:
    small = Machine(8, 16, frozenset(), (9, 0), gpu_gib=0.0)
    parameters = hardware.count_weights(model)
    assert parameters == sum(p.numel() for p in load_file(model / "model.safetensors").values())
    weights = 4 * parameters / GIB

    def card(gib: float) -> Machine:
        """A GPU of which this much is left beside what CUDA and vLLM need themselves."""
        return replace(small, gpu_gib=(gib + shards.WORKSPACE_GIB) / gpu.SHARE)

    one = EngineSettings("float32", 32, gpus=1)
    cache = 32 * 2 * 2 * 32 * 4 / GIB
    assert fit(one, model, card(1.01 * (weights + cache))).gpus == 1
    with pytest.raises(ValueError, match=r"does not fit: .*GiB each: give --engine\.gpus 2"):
        fit(one, model, card(0.99 * (weights + cache)))
    fit(replace(one, gpus=2), model, card(0.51 * (weights + cache)))
    fit(replace(one, dtype="bfloat16"), model, card(0.51 * (weights + cache)))
    with pytest.raises(ValueError, match="use GPUs with more memory"):
        fit(one, model, card(0.1 * weights))
    half = replace(one, gpus=0.5)
    with pytest.raises(ValueError, match=r"on --engine\.gpus 0\.5 .*give --engine\.gpus 1"):
        fit(half, model, card(1.01 * (weights + cache)))


def test_a_model_of_70_billion_weights_is_scored_on_two_gpus_of_80_gb() -> None:
    from transformers import LlamaConfig

    llama = LlamaConfig(num_attention_heads=64, num_key_value_heads=8, intermediate_size=28672)
    assert shards.fitting(llama, 131.4 + 2.5, 79.6) == [2, 4, 8, 16, 32, 64]
    assert shards.fitting(llama, 131.4 + 2.5, 23.7) == [8, 16, 32, 64]


def test_replicas_share_the_cores(model: Path) -> None:
    assert fit(OPEN, model, AMX_CPU).threads == 8
    assert fit(EngineSettings(max_model_len=99, num_replicas=3), model, AMX_CPU).threads == 2
    assert fit(EngineSettings(max_model_len=99, num_replicas=9), model, AMX_CPU).threads == 1
    chosen = fit(ON_GPU, model, NEW_GPU)
    assert (chosen.threads, chosen.kv_cache_gib) == (0, 0), "vLLM measures what is free on a GPU"


def test_the_kv_cache_holds_all_requests_if_memory_allows(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    per_token *= config["head_dim"] * 4
    needed = 1000 * OPEN.requests_per_replica * per_token / GIB
    assert needed < fit(OPEN, model, AMX_CPU).kv_cache_gib < 1.3 * needed + 0.01
    little = Machine(8, needed, frozenset())
    assert fit(OPEN, model, little).kv_cache_gib < 0.25 * needed + 0.01
    with pytest.raises(
        ValueError, match=r"up to 1000 tokens, takes .* GiB .* smaller --engine.max"
    ):
        fit(OPEN, model, Machine(8, 1e-5, frozenset()))


def test_this_machine_is_described() -> None:
    machine = hardware.this_machine()
    assert machine.cores >= 1 and machine.free_gib > 0
