"""Toy models of common families and packed rows of made-up examples, for tests of all families.

`alone` computes the reference: each example on its own, with the model's eager attention.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from otr.data import pack
from tests.otr.runs import examples

LENGTH, WINDOW = 48, 5  # every example is longer than the window
SIZE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": WINDOW,
}
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {}),
    "llama": (LlamaConfig, {"sliding_window": None}),
    "gemma": (GemmaConfig, {"sliding_window": None}),
    "gemma2": (Gemma2Config, {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "mistral": (MistralConfig, {}),
}


def toy(config: PretrainedConfig) -> PreTrainedModel:
    """Build a model with weights large enough that every part of it matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3)
            if "norm" in name:
                parameter.data += 1
    return model


def make_family(directory: Path, name: str, tied: bool = True) -> Path:
    kind, more = FAMILIES[name]
    model = toy(kind(**SIZE | more, tie_word_embeddings=tied))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    model.save_pretrained(directory)
    return directory


def packed_rows() -> dict[str, Tensor]:
    """Return nine examples in packed rows that end with padding."""
    batch = {name: torch.from_numpy(column) for name, column in pack(examples(9), LENGTH).items()}
    assert (batch["segment_ids"] == 0).any() and batch["segment_ids"].max() > 1
    return batch


def alone(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the examples' logits in order, and the summed cross-entropy of their targets."""
    logits, loss = [], torch.zeros(())
    for ids_S, mask_S, segment_S in zip(
        batch["input_ids"], batch["loss_mask"], batch["segment_ids"], strict=True
    ):
        for number in range(1, int(segment_S.max()) + 1):
            inside = segment_S == number
            ids = ids_S[inside].long()
            logits.append(model(input_ids=ids[None], use_cache=False).logits[0])
            target = ids[1:].masked_fill(~mask_S[inside][1:], -100)
            loss = loss + cross_entropy(logits[-1][:-1], target, reduction="sum")
    return torch.cat(logits), loss
