"""What a replica is started with, per device kind and data type; no Ray and no GPU."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evals import gpu
from evals.hardware import Machine, fit
from evals.serving import plan as plan_module
from evals.serving.plan import ReplicaPlan, plan
from evals.settings import EngineSettings
from tests.assets.tiny import make_tiny_model

CPU = Machine(8, 16, frozenset({"bfloat16"}))
T4 = Machine(8, 16, frozenset(), (7, 5), gpu_gib=14.6)
H100 = Machine(8, 16, frozenset(), (9, 0), gpu_gib=79.6)
EXACT = {
    "TRITON_F32_DEFAULT": "ieee",
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",
    "NVIDIA_TF32_OVERRIDE": "0",
}
SERVER = {"RAYLLM_VLLM_ENGINE_CLS": "evals.serving.lean_engine.LeanVLLMEngine"}
ON_CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def planned(model: Path, machine: Machine, **settings) -> ReplicaPlan:
    return plan(fit(EngineSettings(max_model_len=99, **settings), model, machine))


@pytest.mark.parametrize(
    ("machine", "settings", "engine", "environment", "bundle"),
    [
        pytest.param(
            CPU,
            {"dtype": "float32", "kv_cache_gib": 1},
            {
                "dtype": "float32",
                "enforce_eager": True,
                "kv_cache_memory_bytes": 2**30,
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 2048,
            },
            ON_CPU | {"OMP_NUM_THREADS": "8"},
            {"CPU": 1},
            id="CPU",
        ),
        pytest.param(
            H100,
            {"dtype": "bfloat16", "gpus": 1},
            {"dtype": "bfloat16", "enforce_eager": False, "gpu_memory_utilization": 0.9},
            {},
            {"CPU": 1, "GPU": 1},
            id="a whole GPU",
        ),
        pytest.param(
            H100,
            {"dtype": "bfloat16", "gpus": 0.5},
            {"dtype": "bfloat16", "enforce_eager": False, "gpu_memory_utilization": 0.45},
            {},
            {"CPU": 1, "GPU": 0.5},
            id="half a GPU",
        ),
        pytest.param(
            H100,
            {"dtype": "bfloat16", "gpus": 0.5, "kv_cache_gib": 2},
            {
                "dtype": "bfloat16",
                "enforce_eager": False,
                "gpu_memory_utilization": 0.45,  # else vLLM wants 92 % of the card to be free
                "kv_cache_memory_bytes": 2**31,
            },
            {},
            {"CPU": 1, "GPU": 0.5},
            id="half a GPU, with a cache of a given size",
        ),
        pytest.param(
            H100,
            {"dtype": "bfloat16", "gpus": 2},
            {
                "dtype": "bfloat16",
                "enforce_eager": False,
                "gpu_memory_utilization": 0.9,
                "tensor_parallel_size": 2,
            },
            {},
            {"CPU": 1, "GPU": 2},
            id="two GPUs",
        ),
        pytest.param(
            T4,
            {"gpus": 1},  # of a model in bfloat16
            {"dtype": "float32", "enforce_eager": False, "gpu_memory_utilization": 0.9},
            EXACT,
            {"CPU": 1, "GPU": 1},
            id="a GPU without bfloat16",
        ),
        pytest.param(
            T4,
            {"dtype": "float16", "gpus": 1},
            {"dtype": "float16", "enforce_eager": False, "gpu_memory_utilization": 0.9},
            {},
            {"CPU": 1, "GPU": 1},
            id="a GPU without bfloat16, in float16",
        ),
        pytest.param(
            H100,
            {"dtype": "float32", "gpus": 1},
            {"dtype": "float32", "enforce_eager": False, "gpu_memory_utilization": 0.9},
            EXACT,
            {"CPU": 1, "GPU": 1},
            id="float32 on a GPU",
        ),
    ],
)
def test_every_kind_of_device(
    model, machine, settings, engine, environment, bundle, monkeypatch
) -> None:
    monkeypatch.setattr("evals.hardware._text_config", stored_in_bfloat16(model))
    found = planned(model, machine, **settings)
    same = {
        "max_model_len": 99,
        "worker_extension_cls": "evals.serving.worker_extension.SwapWeights",
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    assert found.engine == same | engine
    assert found.environment.pop("PYTHONPATH") == str(Path(__file__).parents[3])
    assert found.environment == SERVER | environment
    assert found.bundle == bundle


def stored_in_bfloat16(model: Path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    config.dtype = "bfloat16"
    return lambda directory: config


def test_shares_of_a_gpu_leave_room_for_contexts() -> None:
    both = [plan(EngineSettings("bfloat16", 99, gpus=part)) for part in (0.3, 0.7)]
    assert sum(each.engine["gpu_memory_utilization"] for each in both) == pytest.approx(gpu.SHARE)
    assert gpu.SHARE < 1


KERNEL = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def product(a, b, c):
    i = tl.arange(0, 16)
    place = i[:, None] * 16 + i[None, :]
    tl.store(c + place, tl.dot(tl.load(a + place), tl.load(b + place)))

source = ASTSource(product, {"a": "*fp32", "b": "*fp32", "c": "*fp32"}, {})
print("tf32" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"])
"""


def test_the_environment_makes_tritons_float32_exact(model, tmp_path) -> None:
    """Compiled for an H100, which needs none: without the environment, products are TF32."""
    pytest.importorskip("triton.backends.nvidia", reason="triton is not installed")
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = planned(model, H100, dtype="float32", gpus=1).environment
    for more, expected in (({}, "True\n"), (environment, "False\n")):
        done = subprocess.run(
            [sys.executable, tmp_path / "kernel.py"],
            env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")} | more,
            capture_output=True,
            text=True,
        )
        assert done.stdout == expected, done.stderr


@pytest.mark.parametrize("gpus", [1.5, 2.25])
def test_a_replica_has_no_mixed_number_of_gpus(gpus: float) -> None:
    with pytest.raises(ValueError, match=rf"gpus is {gpus}: .* part of one GPU, or a whole number"):
        EngineSettings(gpus=gpus)


def test_the_hidden_gpus_are_those_of_a_cpu_run_alone(model) -> None:
    """A configuration of a CPU run, repeated on a machine with a GPU, computes on none."""
    assert planned(model, replace(H100), dtype="float32").environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in planned(model, H100, gpus=1).environment
    assert plan_module.plan(EngineSettings(gpus=0.5)).bundle["GPU"] == 0.5
