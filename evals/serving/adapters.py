"""LoRA adapters that vLLM serves together with their base model, without merging them into it.

An adapter is a peft directory: adapter_config.json and adapter_model.safetensors. See Hu et al.,
"LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
QUANTIZED = "base_quantize"
"""Key of the metadata of WEIGHTS_FILE that tells how the base model was quantized in training."""
MAX_ADAPTERS = 32
"""How many adapters are served together; each takes memory of the engine."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's max_lora_rank
# Settings of peft that vLLM ignores, with the value that switches them off.
_UNSUPPORTED: dict[str, Any] = {
    "use_dora": False, "modules_to_save": None, "bias": "none", "rank_pattern": {},
    "alpha_pattern": {}, "trainable_token_indices": None,
}  # fmt: skip


def check_all(directories: Sequence[str | Path], model_dir: Path) -> dict[str, Path]:
    """Check adapters of the model in `model_dir`; return name -> absolute path.

    Raises:
        ValueError: a directory holds no adapter, or one that belongs to another model or that vLLM
            can't serve.
    """
    paths = [Path(directory).absolute() for directory in directories]
    for path in paths:
        config = _config(path)
        if reason := _obstacle(config) or _other_base(path):
            raise ValueError(f"vLLM can't serve {path} as an adapter: {reason}; merge it instead")
        base = config.get("base_model_name_or_path") or ""
        if base and Path(base).is_dir() and Path(base).resolve() != model_dir.resolve():
            raise ValueError(f"the adapter {path} belongs to {base}, not to {model_dir}")
    return {f"adapter-{number}": path for number, path in enumerate(paths)}


def engine_arguments(directories: Iterable[Path]) -> dict[str, Any]:
    """Return the arguments with which vLLM serves these adapters; none if there are no adapters."""
    configs = [_config(path) for path in directories]
    if not configs:
        return {}
    return {
        "enable_lora": True,
        # One slot more than there are adapters. On the CPU, vLLM 0.29 applies the last slot to
        # requests without an adapter, so that slot must stay empty.
        "max_loras": len(configs) + 1,
        "max_lora_rank": next(r for r in RANKS if r >= max(c["r"] for c in configs)),
        # Without a list, the output head gets a slot too, and the engine on the CPU dies of a
        # request for prompt log-probabilities. Only last parts of names: with full names vLLM
        # silently skips the layers that it packs (q, k and v; gate and up).
        "lora_target_modules": sorted(
            {name.rpartition(".")[2] for c in configs for name in c["target_modules"]}
        ),
    }


def _config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{path} is not a LoRA adapter: it holds no {CONFIG_FILE}")
    return json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))


def _other_base(path: Path) -> str:
    """Return why vLLM would serve an adapter on another base model than its own; empty if not."""
    if not (path / WEIGHTS_FILE).is_file():
        return ""
    with safe_open(path / WEIGHTS_FILE, "pt") as file:
        found = (file.metadata() or {}).get(QUANTIZED)
    return f"it was trained on a base model quantized to {found}" if found else ""


def _obstacle(config: dict[str, Any]) -> str:
    """Return why vLLM can't serve an adapter; empty if it can."""
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
