"""LoRA adapters that are served beside their model, instead of merged into it.

In: peft directories {adapter_config.json, adapter_model.safetensors}. Out: the arguments with which
vLLM serves them all at once, or why it can't.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CONFIG_FILE = "adapter_config.json"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
# What vLLM does not apply, by the value that switches it off.
_UNSUPPORTED: dict[str, Any] = {
    "use_dora": False, "modules_to_save": None, "bias": "none", "rank_pattern": {},
    "alpha_pattern": {}, "trainable_token_indices": None,
}  # fmt: skip


def check_all(directories: Sequence[str | Path], model_dir: Path) -> dict[str, Path]:
    """Name the adapters of a model; name to absolute path.

    Raises:
        ValueError: one of them is none, belongs to another model, or can't be served by vLLM.
    """
    paths = [Path(directory).absolute() for directory in directories]
    for path in paths:
        config = _config(path)
        if reason := _obstacle(config):
            raise ValueError(f"vLLM can't serve {path} as an adapter: {reason}; merge it instead")
        base = config.get("base_model_name_or_path") or ""
        if base and Path(base).is_dir() and Path(base).resolve() != model_dir.resolve():
            raise ValueError(f"the adapter {path} belongs to {base}, not to {model_dir}")
    return {f"adapter-{number}": path for number, path in enumerate(paths)}


def engine_arguments(directories: Iterable[Path]) -> dict[str, Any]:
    """Arguments of vLLM's engine for these adapters; nothing if there are none."""
    configs = [_config(path) for path in directories]
    if not configs:
        return {}
    return {
        "enable_lora": True,
        # One place more than there are adapters. On the CPU, vLLM 0.29 gives a request without an
        # adapter the last place's: it has to stay empty.
        "max_loras": len(configs) + 1,
        "max_lora_rank": next(r for r in RANKS if r >= max(c["r"] for c in configs)),
        # Without a list the head would get room for an adapter, and log-probabilities of a prompt
        # would end the engine on the CPU. Only last parts of names: whole ones would silently leave
        # out what vLLM packs (q, k and v; gate and up).
        "lora_target_modules": sorted(
            {name.rpartition(".")[2] for c in configs for name in c["target_modules"]}
        ),
    }


def _config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{path} is no LoRA adapter: it holds no {CONFIG_FILE}")
    return json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))


def _obstacle(config: dict[str, Any]) -> str:
    """Why vLLM can't serve an adapter; empty if it can."""
    if config.get("peft_type") != "LORA":
        return f"its peft_type is {config.get('peft_type')!r}, not 'LORA'"
    if not isinstance(config["target_modules"], list):
        return f"target_modules is the pattern {config['target_modules']!r}"
    if any(name.endswith("lm_head") for name in config["target_modules"]):
        return "it changes the head (lm_head)"
    if config["r"] > RANKS[-1]:
        return f"rank {config['r']} exceeds {RANKS[-1]}"
    for key, off in _UNSUPPORTED.items():
        if config.get(key) not in (None, off):
            return f"{key} is {config[key]!r}"
    return ""
