"""A frozen base model in 4 bits, for adapters: QLoRA, by bitsandbytes.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, section 3: the
weights of linear layers are stored as NF4, in blocks of 64 with a scale each, and the scales in 8
bits (double quantization). Each pass computes them anew in float32, or in bfloat16 under autocast.
The head stays as it is: the loss reads its weight.

Weights are quantized on the CPU, on every machine, so that a reloaded model is the one in training.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layers

from otr._compat import prepare_4bit

BYTES_PER_WEIGHT = 0.5 + (1 + 4 / 256) / 64
"""Bytes per weight in NF4: 4 bits, an 8-bit scale per 64 weights, a float32 per 256 scales."""


def require_package() -> None:
    """Check that bitsandbytes is installed.

    Raises:
        ValueError: the package is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            "lora.quantize needs the package bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )


def loading_options(quantize: str) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that quantize a model while it is loaded.

    Args:
        quantize: as in `LoraConfig.quantize`, but not "none".

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    require_package()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize,
        bnb_4bit_use_double_quant=True,
    )
    return {"quantization_config": config, "device_map": {"": "cpu"}}


def check_quantized(model: PreTrainedModel) -> None:
    """Check that a model was quantized as training assumes; prepare it for training on any device.

    Raises:
        ValueError: no linear layer is quantized, or the head is.
    """
    layers = dict(quantized_layers(model))
    if not layers or model.get_output_embeddings() in layers.values():
        found = "its head would be in 4 bits" if layers else "it has no such linear layer"
        raise ValueError(
            f"models of type {model.config.model_type} can't be trained in 4 bits, since {found}: "
            "use lora.quantize none"
        )
    for layer in layers.values():
        prepare_4bit(layer)


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model with the weights that its 4 bits stand for, in float32."""
    return model.dequantize(torch.float32)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each layer whose weight is quantized."""
    for name, module in model.named_modules():
        if type(getattr(module, "weight", None)).__name__ == "Params4bit":  # bitsandbytes is slow
            yield name, module


def layers_to_quantize(model: PreTrainedModel) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Yield name and module of each layer that `load_model` would quantize."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module
