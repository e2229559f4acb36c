"""Whether a model fits on the GPUs of a replica, and can be divided among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evals import gpu

if TYPE_CHECKING:
    from evals.settings import EngineSettings

WORKSPACE_GIB = 1.0
"""What a GPU needs for activations, CUDA graphs and NCCL's buffers; a guess."""
_MOST = 64  # GPUs of a replica


def check(
    settings: EngineSettings, config: Any, weights: float, cache: float, gpu_gib: float | None
) -> None:
    """Check that a model can be divided among the GPUs of a replica, and fits on them.

    Args:
        settings: settings of the engine, on GPUs.
        config: the text config of a transformers model.
        weights: weights in GiB; 0: unknown.
        cache: KV cache of one request, or of the size that was given, in GiB.
        gpu_gib: memory of a GPU, in GiB; None: unknown.

    Raises:
        ValueError: the model can't be divided, or does not fit; the message names numbers of GPUs
            with which it can.
    """
    if not _divides(config, settings.shards):
        possible = [n for n in range(1, _MOST + 1) if _divides(config, n)]
        heads, kv_heads = _heads(config)
        raise ValueError(
            f"--engine.gpus is {settings.gpus:g}, but a model with {heads} attention heads and "
            f"{kv_heads} KV heads can't be divided among so many GPUs; possible are "
            f"{', '.join(map(str, possible))}"
        )
    if not weights or gpu_gib is None:
        return
    enough = fitting(config, weights + cache, gpu_gib)
    if settings.gpus < 1:
        fits = weights + cache <= room(gpu_gib * settings.gpus)
    else:
        fits = settings.shards in enough
    if not fits:
        remedy = f"give --engine.gpus {enough[0]}" if enough else "use GPUs with more memory"
        raise ValueError(
            f"the model does not fit: {weights:.1f} GiB of weights in {settings.dtype} and "
            f"{cache:.1f} GiB of KV cache, on --engine.gpus {settings.gpus:g} with {gpu_gib:.0f} "
            f"GiB each: {remedy}"
        )


def fitting(config: Any, gib: float, gpu_gib: float) -> list[int]:
    """Return the numbers of GPUs with which a replica holds a model, fewest first.

    Args:
        config: the text config of a transformers model.
        gib: weights and KV cache, in GiB.
        gpu_gib: memory of a GPU, in GiB.
    """
    return [n for n in range(1, _MOST + 1) if _divides(config, n) and gib / n <= room(gpu_gib)]


def room(gpu_gib: float) -> float:
    """Return the GiB that weights and KV cache may take of a GPU, or of a share of one."""
    return gpu_gib * gpu.SHARE - WORKSPACE_GIB


def _heads(config: Any) -> tuple[int, int]:
    heads = _number(config, "num_attention_heads")
    return heads, _number(config, "num_key_value_heads") or heads


def _number(config: Any, name: str) -> int:
    """Return a size of the model; 0 if it has none, or its layers have different ones (a list)."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _divides(config: Any, shards: int) -> bool:
    """Return whether vLLM can divide a model: KV heads are divided, or each of them is repeated."""
    (heads, kv_heads), width = _heads(config), _number(config, "intermediate_size")
    parts = max(kv_heads, shards) % min(kv_heads, shards) if kv_heads else 0
    return heads % shards == width % shards == parts == 0
