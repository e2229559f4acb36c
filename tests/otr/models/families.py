"""Toy models of many families and packed rows of made-up examples, for tests of all families.

`FAMILIES` are those whose attention is tested in every way; `MODELS` are all that were tried, as
docs/reference/models.md lists them. `alone` computes the reference: each example on its own, with
the model's eager attention.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
    StableLmConfig,
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
LONG_ROWS = "one after another, without padding"
PADDED_ROWS = "several per padded row"
OWN_ROWS = "each in a row of its own"


@dataclass(frozen=True)
class Model:
    """A toy of a family."""

    label: str
    """As the documentation calls it."""
    kind: type[PretrainedConfig]
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields that differ from `SIZE`; None leaves one out."""
    examples: str = LONG_ROWS
    """How its examples are computed."""

    def config(self) -> PretrainedConfig:
        """Return its configuration."""
        fields = {key: value for key, value in (SIZE | self.changes).items() if value is not LEFT}
        return self.kind(**fields)


LEFT = object()
"""In place of a field's value: the family has no such field."""
STATES = {"mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}


class _Gemma3Vision:
    """Builds the configuration of a Gemma 3 with a vision tower from that of its text part."""

    def __new__(cls, **text: Any) -> Any:
        eye = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3}
        eye |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        tokens = {"image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}
        return Gemma3Config(text_config=text, vision_config=eye, mm_tokens_per_image=4, **tokens)


MODELS: dict[str, Model] = {
    "qwen2": Model("Qwen2, Qwen2.5", Qwen2Config, FAMILIES["qwen2"][1]),
    "qwen3": Model("Qwen3", Qwen3Config),
    "qwen3_moe": Model("Qwen3-MoE", Qwen3MoeConfig, EXPERTS),
    "llama": Model("Llama 2, 3", LlamaConfig, {"sliding_window": None}),
    "gemma2": Model("Gemma 2", Gemma2Config, FAMILIES["gemma2"][1]),
    "gemma3_text": Model("Gemma 3, text", Gemma3TextConfig, SLIDING),
    "gemma3": Model("Gemma 3, with vision", _Gemma3Vision, SLIDING),  # type: ignore[arg-type]
    "mistral": Model("Mistral", MistralConfig),
    "mixtral": Model("Mixtral", MixtralConfig, LOCAL_EXPERTS),
    "phi3": Model("Phi-3", Phi3Config),
    "olmo2": Model("OLMo 2", Olmo2Config),
    "smollm3": Model("SmolLM3", SmolLM3Config, {"no_rope_layers": [1, 0]}),
    "gpt_neox": Model("GPT-NeoX, Pythia", GPTNeoXConfig),
    "gpt2": Model(
        "GPT-2",
        GPT2Config,
        {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "deepseek_v3": Model("DeepSeek-V3", DeepseekV3Config, LATENT),
    "stablelm": Model("StableLM", StableLmConfig, {}, PADDED_ROWS),
    "nemotron": Model("Nemotron", NemotronConfig, {}, PADDED_ROWS),
    "llama4": Model(
        "Llama 4, text",
        Llama4TextConfig,
        LOCAL_EXPERTS
        | {"num_experts_per_tok": 1, "intermediate_size_mlp": 48, "attention_chunk_size": 8},
        PADDED_ROWS,
    ),
    "gpt_oss": Model("gpt-oss", GptOssConfig, LOCAL_EXPERTS, OWN_ROWS),
    "falcon": Model("Falcon", FalconConfig, {"head_dim": LEFT}, OWN_ROWS),
    "bloom": Model("BLOOM", BloomConfig, {"n_head": 4, "n_layer": 2}, OWN_ROWS),
    "mamba": Model("Mamba", MambaConfig, {}, OWN_ROWS),
    "falcon_h1": Model(
        "Falcon-H1",
        FalconH1Config,
        STATES
        | {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "lm_head_multiplier": 0.5},
        OWN_ROWS,
    ),
    "qwen3_5": Model("Qwen3.5, text", Qwen3_5TextConfig, LINEAR, OWN_ROWS),
    "qwen3_next": Model(
        "Qwen3-Next",
        Qwen3NextConfig,
        # Every expert is chosen: a choice by a hair's breadth would differ between two workers.
        LINEAR | EXPERTS | {"num_experts": 2, "shared_expert_intermediate_size": 16},
        OWN_ROWS,
    ),
    "lfm2": Model("LFM2", Lfm2Config, {"layer_types": ["conv", "full_attention"]}, OWN_ROWS),
    "recurrent_gemma": Model(
        "RecurrentGemma", RecurrentGemmaConfig, {"logits_soft_cap": 2.0}, OWN_ROWS
    ),
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
