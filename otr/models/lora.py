"""LoRA adapters: small trained matrices beside frozen weights, by peft.

In: a transformers model and a `LoraConfig`. Out: peft's model around it, of which only the adapters
train, in float32; a peft directory {adapter_model.safetensors, adapter_config.json} that names the
model it belongs to; or a plain model with the adapters added to its weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4:
W + (alpha / rank) B A, A random, B zero at the start.
"""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from otr.config import LoraConfig, ModelConfig
from otr.models.load import load_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def add_adapters(model: "PreTrainedModel", config: LoraConfig, *, seed: int = 0) -> "PeftModel":
    """Put an adapter on every linear layer that `config` names, and freeze all else.

    Args:
        model: changed in place; may be on the meta device.
        config: with a rank of at least 1.
        seed: of the adapters' first values, so that every rank makes the same.

    Returns:
        peft's model; `otr.models.parts.head` and `hidden_states` take it.

    Raises:
        ValueError: a target is no linear layer, or is the head.
    """
    import peft

    assert config.rank > 0
    _check_targets(model, config.targets)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=list(config.targets) or "all-linear",
        task_type=peft.TaskType.CAUSAL_LM,
    )
    meta = model.device.type == "meta"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        # Ignored is peft's use of a name that transformers has deprecated.
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, settings, low_cpu_mem_usage=meta)
    # Absolute: who merges the adapter may have another working directory.
    path = settings.base_model_name_or_path
    if path and Path(path).is_dir():
        settings.base_model_name_or_path = str(Path(path).absolute())
    return adapted


def adapter_state(
    model: nn.Module, weights: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of the adapters alone, under the names that `write_adapter` wants.

    Args:
        model: of `add_adapters`.
        weights: its state dict, where that is not `model.state_dict()`, as under FSDP; the frozen
            weights may be missing.
    """
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, weights, save_embedding_layers=False)


def write_adapter(directory: str | Path, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write peft's directory from the tensors of `adapter_state`, gathered on the CPU."""
    from safetensors.torch import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = cast("PeftModel", model).peft_config["default"]
    replace(settings, inference_mode=True).save_pretrained(str(directory))


def base_path(directory: str | Path) -> str:
    """The model that an adapter belongs to, as its directory says.

    Raises:
        ValueError: the directory holds no adapter.
    """
    from peft import LoraConfig as Settings

    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (Path(directory) / name).is_file():
            raise ValueError(f"no LoRA adapter in {str(directory)!r}: there is no {name}")
    path = Settings.from_pretrained(str(directory)).base_model_name_or_path
    if not path:
        raise ValueError(
            f"the adapter in {str(directory)!r} does not say of which model it is: "
            f"give base_model_name_or_path in its {CONFIG_FILE}"
        )
    return path


def load_adapters(directory: str | Path, base: ModelConfig) -> "PeftModel":
    """The base model with the adapters of a directory, ready to train on.

    Raises:
        ValueError: there is no adapter, or it is of a model of another shape.
    """
    from peft import PeftModel
    from safetensors import safe_open

    base_path(directory)
    misfit = f"the adapter in {str(directory)!r} does not fit the model at {base.path!r}"
    model = load_model(base)
    try:
        with warnings.catch_warnings(action="ignore"):  # of missing keys, looked at below
            adapted = PeftModel.from_pretrained(model, str(directory), is_trainable=True)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{misfit}: {reason}") from error
    with safe_open(Path(directory) / WEIGHTS_FILE, "pt") as file:
        different = set(file.keys()) ^ set(adapter_state(adapted))
    if different:
        raise ValueError(f"{misfit}: only one of them has {min(different)}")
    return adapted


def merge_adapters(model: "PeftModel") -> "PreTrainedModel":
    """The plain model with the adapters' products added to its weights; `model` is used up.

    Raises:
        ValueError: a merged weight is not finite.
    """
    return model.merge_and_unload(safe_merge=True)


def _check_targets(model: "PreTrainedModel", targets: tuple[str, ...]) -> None:
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    for target in targets:
        found = [module for name, module in linear.items() if f".{name}".endswith(f".{target}")]
        if any(module is head for module in found):
            raise ValueError(
                f"lora.targets: {target!r} is the head, which gets no adapter: leave it out"
            )
        if not found:
            names = sorted({n.rpartition(".")[2] for n, m in linear.items() if m is not head})
            near = get_close_matches(target, names, 3, 0.5) or names
            raise ValueError(
                f"lora.targets: {target!r} is the end of no linear layer's name: "
                f"did you mean {', '.join(near)}?"
            )
