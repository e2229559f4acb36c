"""LoRA adapters: small trained matrices beside frozen weights, by peft.

Adapters train in float32. They are saved in peft's format (adapter_model.safetensors and
adapter_config.json, which names the base model) or merged into the weights of a plain model.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4:
W + (alpha / rank) B A, where A starts random and B starts at zero.

Modules that may not need adapters import this one inside functions, since peft is slow to import.
"""

import functools
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import peft
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

from otr.config import LoraConfig, ModelConfig
from otr.models.load import empty_model, load_model
from otr.models.structure import towers

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

STATE_SPACE_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Model types in which peft 0.21 refuses adapters on some layers (peft/tuners/tuners_utils.py)."""


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int = 0) -> PeftModel:
    """Add an adapter to every linear layer that `config` names, and freeze all other weights.

    Args:
        model: changed in place; may be on the meta device.
        config: with a rank of at least 1.
        seed: of the adapters' initial values, which must be the same on every rank.

    Returns:
        peft's model; `otr.models.parts.head` and `hidden_states` accept it.

    Raises:
        ValueError: a target is not a linear layer, or is the head.
    """
    assert config.rank > 0
    _check_targets(model, config.targets)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared int, but any number works
        target_modules=list(config.targets) or "all-linear",
        exclude_modules=_excluded(model),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    meta = model.device.type == "meta"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        # peft uses a name that transformers has deprecated.
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, settings, low_cpu_mem_usage=meta)
    # Absolute, since the adapter may be merged from another working directory.
    path = settings.base_model_name_or_path
    if path and Path(path).is_dir():
        settings.base_model_name_or_path = str(Path(path).absolute())
    return adapted


@functools.lru_cache
def count_adapter_weights(model: ModelConfig, config: LoraConfig) -> int:
    """Return the number of weights in the adapters of a model; reads its config alone.

    Raises:
        ValueError: the model's config cannot be loaded, or as `add_adapters`.
    """
    adapted = add_adapters(empty_model(model), config)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def adapter_state(
    model: nn.Module, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the adapters alone, under the names that `write_adapter` expects.

    Args:
        model: a result of `add_adapters`.
        weights: the model's state dict, if it is not `model.state_dict()`, as under FSDP; frozen
            weights may be missing.
    """
    return peft.get_peft_model_state_dict(model, weights, save_embedding_layers=False)


def write_adapter(directory: str | Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write an adapter in peft's format.

    Args:
        directory: created if missing.
        model: a result of `add_adapters`, used for its config.
        state: the tensors of `adapter_state` on the CPU.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = cast(PeftModel, model).peft_config["default"]
    replace(settings, inference_mode=True).save_pretrained(str(directory))


def base_path(directory: str | Path) -> str:
    """Return the path or hub name of an adapter's base model.

    Raises:
        ValueError: the directory holds no adapter, or the adapter does not name its base model.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (Path(directory) / name).is_file():
            raise ValueError(f"no LoRA adapter in {str(directory)!r}: there is no {name}")
    path = peft.LoraConfig.from_pretrained(str(directory)).base_model_name_or_path
    if not path:
        raise ValueError(
            f"the adapter in {str(directory)!r} does not name its base model: "
            f"set base_model_name_or_path in its {CONFIG_FILE}"
        )
    return path


def load_adapters(directory: str | Path, base: ModelConfig) -> PeftModel:
    """Load a base model with an adapter, ready to continue training.

    Args:
        directory: holds the adapter.
        base: the base model; its path overrides the one that the adapter names.

    Raises:
        ValueError: there is no adapter, or it does not fit the base model.
    """
    base_path(directory)
    misfit = f"the adapter in {str(directory)!r} does not fit the model at {base.path!r}"
    model = load_model(base)
    try:
        with warnings.catch_warnings(action="ignore"):  # about missing keys, checked below
            adapted = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{misfit}: {reason}") from error
    with safe_open(Path(directory) / WEIGHTS_FILE, "pt") as file:
        different = set(file.keys()) ^ set(adapter_state(adapted))
    if different:
        raise ValueError(f"{misfit}: only one of them has the tensor {min(different)}")
    return adapted


def merge_adapters(model: PeftModel) -> PreTrainedModel:
    """Add the adapters' products to the weights; `model` must not be used afterwards.

    Returns:
        The plain transformers model.

    Raises:
        ValueError: a merged weight is not finite.
    """
    return model.merge_and_unload(safe_merge=True)


def _excluded(model: PreTrainedModel) -> str | None:
    """Return a regular expression for the names of modules that get no adapter, for peft.

    These are the modules of towers, which text does not reach; linear layers that compute something
    else besides, such as the choice of experts; and what peft refuses in state-space models, whose
    fused kernels take the weights without calling the layer.
    """
    patterns = [rf"{re.escape(name)}(\..*)?" for name in towers(model)]
    patterns += [
        re.escape(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward
    ]
    if model.config.model_type in STATE_SPACE_TYPES:
        patterns.append(r".*\.(out_proj|conv1d)")
    return "|".join(f"({pattern})" for pattern in patterns) or None


def _check_targets(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for target in targets:
        found = [module for name, module in linear.items() if f".{name}".endswith(f".{target}")]
        if any(module is head for module in found):
            raise ValueError(
                f"lora.targets: {target!r} is the head, which gets no adapter: remove it"
            )
        if not found:
            names = sorted({n.rpartition(".")[2] for n, m in linear.items() if m is not head})
            near = get_close_matches(target, names, 3, 0.5) or names
            raise ValueError(
                f"lora.targets: no linear layer's name ends with {target!r}: "
                f"did you mean {', '.join(near)}?"
            )
