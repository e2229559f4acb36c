"""A Hugging Face causal language model and its tokenizer, ready to train on packed rows.

Shapes: B rows, S row length, N tokens that are no padding, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from otr._compat import can_set_attention, supports_attention_interface, supports_sdpa
from otr.config import ModelConfig
from otr.models.architecture import load_architecture
from otr.models.attention import PACKED, hands_on_lengths, register


def load_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """The model with float32 weights on the CPU.

    Raises:
        ValueError: it can't be loaded, is a LoRA adapter, lacks weights, or `tokenizer` has ids
            that the model has no row for.
    """
    if (Path(config.path) / "adapter_config.json").is_file():
        raise ValueError(
            f"{config.path!r} holds a LoRA adapter: make a model of it with "
            f"`otr merge {config.path} OUT`, then use OUT"
        )
    register()
    with _reasons(config):
        both: Any = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            attn_implementation=_requested(config),
            output_loading_info=True,
        )
    model, loaded = cast(tuple[PreTrainedModel, dict[str, set[str]]], both)
    if loaded["missing_keys"]:
        raise ValueError(
            f"{config.path!r} lacks {len(loaded['missing_keys'])} of the model's weights, such as "
            f"{min(loaded['missing_keys'])}: give a directory with all of them"
        )
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"vocabulary mismatch at {config.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings; use the model's own tokenizer"
        )
    return _attending(model, config)


def empty_model(config: ModelConfig) -> PreTrainedModel:
    """The model on the meta device: all shapes, no weights, and none are read or fetched.

    Raises:
        ValueError: there is no config of a causal language model.
    """
    register()
    shape = load_architecture(config)
    with _reasons(config), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shape,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=_requested(config),
        )
    return _attending(model, config)


@contextmanager
def _reasons(config: ModelConfig) -> Iterator[None]:
    """Of what transformers says when it can't load, the first line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no causal language model at {config.path!r}: {reason}") from error


def _requested(config: ModelConfig) -> str | None:
    """What transformers is asked for while it loads; None: SDPA where the model has it."""
    return None if config.attention == "auto" else config.attention


def _attending(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """With the attention PACKED if that is what `config` wants and the model can take it.

    A model takes it that asks transformers' interface for its attention and hands on `lengths`,
    and has no other attention than softmax(q k) v, with a softcap or without: one with sinks, say,
    does not support SDPA.
    """
    if config.attention != "auto":
        return model
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    takes = (
        supports_attention_interface(model)
        and can_set_attention(model)
        and (supports_sdpa(model) or softcap is not None)
        and hands_on_lengths(model)
    )
    if takes:
        model.set_attn_implementation(PACKED)
    return model
