"""What a replica is started with: arguments of vLLM's engine, environment, resources.

`plan` only decides; `evals.serving.deployment` starts what it returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import gpu
from evals.settings import EngineSettings

_ENGINE = {"RAYLLM_VLLM_ENGINE_CLS": "evals.serving.lean_engine.LeanVLLMEngine"}
_ON_CPU = {
    # Ray leaves the GPUs visible to a process that asks for none.
    "CUDA_VISIBLE_DEVICES": "",
    # Otherwise the first request waits half a minute while a log-softmax is compiled.
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
_EXACT_FLOAT32 = {
    # vLLM computes float32 attention in Triton, whose products are TF32 unless this is set.
    "TRITON_F32_DEFAULT": "ieee",
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",  # torch's products
    "NVIDIA_TF32_OVERRIDE": "0",  # whatever else asks cuBLAS or cuDNN for TF32
}


@dataclass(frozen=True)
class ReplicaPlan:
    """Arguments, environment and resources of a replica."""

    engine: dict[str, Any]
    """Arguments of vLLM's engine."""
    environment: dict[str, str]
    """Environment variables of its processes."""
    gpus: float
    """GPUs that its server process reserves; Ray makes no others visible to it and its children.
    They are all on one node, since they are one actor's."""
    cpus: int = 1
    """Logical CPUs that Ray reserves for it."""

    @property
    def bundle(self) -> dict[str, float]:
        """The resources of a replica, as Ray counts them."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


def plan(settings: EngineSettings) -> ReplicaPlan:
    """Decide how a replica is started.

    Args:
        settings: settings that `evals.hardware.fit` has returned for the model and the machine.
    """
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])} | _ENGINE
    if not settings.gpus:
        environment |= _ON_CPU | {"OMP_NUM_THREADS": str(settings.threads)}
    elif settings.dtype == "float32":
        environment |= _EXACT_FLOAT32
    return ReplicaPlan(_engine_arguments(settings), environment, settings.gpus)


def _engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "enforce_eager": not settings.gpus,
        "worker_extension_cls": "evals.serving.worker_extension.SwapWeights",
        # Otherwise the model's own generation_config.json adds a repetition penalty or top-k to
        # every request that does not set them.
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    if settings.kv_cache_gib:
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
    if settings.gpus:
        # vLLM asks for this share to be free when it starts, also with a cache of a given size.
        arguments["gpu_memory_utilization"] = gpu.SHARE * min(1, settings.gpus)
    if settings.shards > 1:
        arguments["tensor_parallel_size"] = settings.shards
    if not settings.gpus:
        # On the CPU, vLLM 0.29's engine dies of a request with a seed whose prompt is split into
        # chunks: a generator there can't be set back ("CPU Generator does not use offset").
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(2048, settings.max_model_len)
    return arguments
