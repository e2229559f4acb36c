"""LoRA adapters: small trained matrices beside frozen weights, by peft.

Adapters train in float32. They are saved in peft's format (adapter_model.safetensors and
adapter_config.json, which names the base model) or merged into the weights of a plain model. An
adapter of a base model in 4 bits says so in the metadata of its safetensors file, under QUANTIZED.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4:
W + (alpha / rank) B A, where A starts random and B starts at zero.
Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732:
alpha / sqrt(rank) in place of alpha / rank.
Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, section 4: each row of
the sum is scaled to a trained length, which starts as that of the row of W.

Modules that may not need adapters import this one inside functions, since peft is slow to import.
"""

import functools
import re
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import peft
import torch
from peft import PeftModel
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

from otr.config import LoraConfig, ModelConfig
from otr.models.checks import check_merged, sample_logits
from otr.models.load import empty_model, load_model
from otr.models.quantize import dequantize, layers_to_quantize, quantized_layers
from otr.models.structure import towers

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
QUANTIZED = "base_quantize"
"""Key of the metadata of WEIGHTS_FILE for `LoraConfig.quantize`, if that is not "none"."""

STATE_SPACE_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Model types in which peft 0.21 refuses adapters on some layers (peft/tuners/tuners_utils.py)."""


def add_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int = 0) -> PeftModel:
    """Add an adapter to every linear layer that `config` names, and freeze all other weights.

    Weights of `config.modules_to_save` are copied, and the copies are trained.

    Args:
        model: changed in place; may be on the meta device. It is quantized already if `config` says
            so (`load_model(..., quantize=...)`).
        config: with a rank of at least 1.
        seed: of the adapters' initial values, which must be the same on every rank.

    Returns:
        peft's model; `otr.models.parts.head` and `hidden_states` accept it.

    Raises:
        ValueError: a target is not a linear layer, or is the head; a module to save does not exist,
            or can't be trained; or the model is not quantized as `config` says.
    """
    assert config.rank > 0
    _check_targets(model, config.targets)
    meta = model.device.type == "meta"
    _check_quantized(model, config, meta)
    saved = _modules_to_save(model, config)
    _check_ties(model, saved)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # declared int, but any number works
        target_modules=list(config.targets) or "all-linear",
        exclude_modules=_excluded(model),
        task_type=peft.TaskType.CAUSAL_LM,
        use_rslora=config.rs,
        use_dora=config.dora,
        modules_to_save=saved or None,
        ensure_weight_tying=bool(saved) and _is_tied(model),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        # peft uses a name that transformers has deprecated.
        torch.manual_seed(seed)
        with model.device if meta else nullcontext():  # peft's own option unties weights
            adapted = peft.get_peft_model(model, settings)
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
    """Return the tensors that are trained, under the names that `write_adapter` expects.

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
    # Both of two tied weights, as peft reads them: safetensors refuses tensors that share memory.
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        shared = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())
        tensors[name] = tensor.clone() if shared else tensor.contiguous()
    quantized = {QUANTIZED: "nf4"} if any(quantized_layers(model)) else {}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt", **quantized})
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


def base_quantization(directory: str | Path) -> str:
    """Return how the base model of an adapter was quantized, as in `LoraConfig.quantize`."""
    with safe_open(Path(directory) / WEIGHTS_FILE, "pt") as file:
        return (file.metadata() or {}).get(QUANTIZED, "none")


def load_adapters(
    directory: str | Path, base: ModelConfig, *, dequantized: bool = False
) -> PeftModel:
    """Load a base model with an adapter, ready to continue training.

    The base model is quantized if it was when the adapter was trained.

    Args:
        directory: holds the adapter.
        base: the base model; its path overrides the one that the adapter names.
        dequantized: replace a quantized base model by the float32 weights that it stands for.

    Raises:
        ValueError: there is no adapter, or it does not fit the base model.
    """
    base_path(directory)
    misfit = f"the adapter in {str(directory)!r} does not fit the model at {base.path!r}"
    quantize = base_quantization(directory)
    model = load_model(base, quantize=quantize)
    if dequantized and quantize != "none":
        model = dequantize(model)
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

    Args:
        model: not quantized, since merged weights are not rounded to 4 bits again.

    Returns:
        The plain transformers model.

    Raises:
        ValueError: a merged weight is not finite.
    """
    assert not any(quantized_layers(model)), "load it with dequantized=True"
    return model.merge_and_unload(safe_merge=True)


def merged_model(directory: str | Path, base: ModelConfig) -> PreTrainedModel:
    """Merge an adapter into its base model, and check that the result predicts as before.

    An adapter of a base model in 4 bits is merged into the weights that these stand for: it was
    trained to correct their rounding, which the original weights do not have.

    Args:
        directory: holds the adapter.
        base: as for `load_adapters`.

    Returns:
        A plain transformers model, in float32.

    Raises:
        ValueError: see `load_adapters` and `merge_adapters`, or the merged model predicts
            otherwise.
    """
    adapted = load_adapters(directory, base)
    logits_NV = sample_logits(cast(PreTrainedModel, adapted))
    if any(quantized_layers(adapted)):
        adapted = load_adapters(directory, base, dequantized=True)
    merged = merge_adapters(adapted)
    check_merged(merged, logits_NV)
    return merged


def _excluded(model: PreTrainedModel) -> str | None:
    """Return a regular expression for the names of modules that get no adapter, for peft.

    These are the modules of towers, which text does not reach; routers of experts that are linear
    layers themselves and return a pair (Llama 4); and what peft refuses in state-space models,
    whose fused kernels take the weights without calling the layer.
    """
    patterns = [rf"{re.escape(name)}(\..*)?" for name in towers(model)]
    patterns += [
        re.escape(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__
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


def _check_quantized(model: PreTrainedModel, config: LoraConfig, meta: bool) -> None:
    found = "nf4" if any(quantized_layers(model)) else "none"
    if not meta and found != config.quantize:
        raise ValueError(
            f"lora.quantize is {config.quantize!r}, but the model is loaded with {found!r}: give "
            f"load_model(..., quantize={config.quantize!r})"
        )


def _modules_to_save(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Return the full names of the modules whose names end with one of `modules_to_save`."""
    # Linear4bit is a linear layer too, so this names those that are quantized or would be.
    quantized = {name for name, _ in layers_to_quantize(model)}
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and any(True for _ in module.parameters())
    }
    found: list[str] = []
    for end in config.modules_to_save:
        matches = [name for name in modules if f".{name}".endswith(f".{end}")]
        if not matches:
            names = sorted({name.rpartition(".")[2] for name in modules})
            near = get_close_matches(end, names, 3, 0.5) or names
            raise ValueError(
                f"lora.modules_to_save: no module's name ends with {end!r}: did you mean "
                f"{', '.join(near)}?"
            )
        parts = {p for name in matches for p, _ in modules[name].named_modules(prefix=name)}
        if config.quantize != "none" and parts & quantized:
            raise ValueError(
                f"lora.modules_to_save: {end!r} is in 4 bits, in which nothing is trained: leave "
                "it out, or use lora.quantize none"
            )
        found += [name for name in matches if name not in found]
    return found


def _check_ties(model: PreTrainedModel, saved: list[str]) -> None:
    """Check that peft knows the names of tied modules that are to be trained as a whole."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name for name, module in model.named_modules() if module in ends}
    unknown = {name for name in names if name.rpartition(".")[2] not in EMBEDDING_LAYER_NAMES}
    if _is_tied(model) and names & {*saved} and unknown:
        raise ValueError(
            f"lora.modules_to_save: in this {model.config.model_type} model the embeddings are the "
            f"head ({' and '.join(sorted(names))}), and peft can't train them: leave them out"
        )


def _is_tied(model: PreTrainedModel) -> bool:
    """Return whether the model's embeddings are its head."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
