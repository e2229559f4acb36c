"""Loading a Hugging Face causal language model, with or without its weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from otr._compat import can_set_attention, supports_attention_interface, supports_sdpa
from otr.config import ModelConfig
from otr.models.architecture import load_architecture
from otr.models.attention import PACKED, passes_lengths, register
from otr.models.checks import choose_computation
from otr.models.quantize import check_quantized, loading_options
from otr.models.structure import towers
from otr.models.vocabulary import add_embeddings


def load_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    quantize: str = "none",
) -> PreTrainedModel:
    """Load a model with float32 weights on the CPU, set to compute packed examples rightly.

    Vision and audio towers are frozen.

    Args:
        config: the model.
        tokenizer: checked to fit the model's vocabulary, if given.
        quantize: data type of the linear layers except the head, as in `LoraConfig.quantize`.

    Raises:
        ValueError: the model cannot be loaded, is a LoRA adapter, lacks weights, has fewer
            embeddings than `tokenizer` has tokens, or can't be quantized.
    """
    more = loading_options(quantize) if quantize != "none" else {}
    if (Path(config.path) / "adapter_config.json").is_file():
        raise ValueError(
            f"{config.path!r} holds a LoRA adapter: merge it into a model with "
            f"`otr merge {config.path} OUT`, then use OUT"
        )
    register()
    with _load_errors(config):
        both: Any = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            attn_implementation=_requested_attention(config),
            output_loading_info=True,
            **more,
        )
    model, loaded = cast(tuple[PreTrainedModel, dict[str, set[str]]], both)
    if loaded["missing_keys"]:
        raise ValueError(
            f"{config.path!r} lacks {len(loaded['missing_keys'])} of the model's weights, such as "
            f"{min(loaded['missing_keys'])}: give a directory with all of them"
        )
    if config.add_tokens:
        add_embeddings(model, config)
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"vocabulary mismatch at {config.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings; use the model's own tokenizer"
        )
    if quantize != "none":
        check_quantized(model)
    _prepare(model, config)
    if not config.attention.startswith(("flash", "flex")):  # these need a GPU, or minutes
        choose_computation(model, attention=config.attention)
    return model


def empty_model(config: ModelConfig) -> PreTrainedModel:
    """Build a model on the meta device from its config alone; no weights are read or downloaded.

    Raises:
        ValueError: there is no config of a causal language model.
    """
    register()
    architecture = load_architecture(config)
    with _load_errors(config), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            architecture,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=_requested_attention(config),
        )
    if config.add_tokens:
        add_embeddings(model, config)
    return _prepare(model, config)


def as_base(model: PreTrainedModel, dtype: str = "float32") -> PreTrainedModel:
    """Freeze a model that another one is only compared with.

    Args:
        model: changed in place; may be on the meta device.
        dtype: precision of the forward passes, as in `ModelConfig.dtype`. In bfloat16 the weights
            of linear layers are stored so, which halves their memory: autocast rounds them in each
            pass anyway.
    """
    model.requires_grad_(False).eval()
    shared = model.get_input_embeddings().weight
    for layer in model.modules():
        if dtype == "bfloat16" and isinstance(layer, nn.Linear) and layer.weight is not shared:
            layer.to(torch.bfloat16)
    return model


@contextmanager
def _load_errors(config: ModelConfig) -> Iterator[None]:
    """Turn the errors of transformers' loading into a ValueError with their first line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no causal language model at {config.path!r}: {reason}") from error


def _requested_attention(config: ModelConfig) -> str | None:
    """Return the attention to load with; None lets transformers choose, SDPA if supported."""
    return None if config.attention == "auto" else config.attention


def _prepare(model: PreTrainedModel, config: ModelConfig) -> PreTrainedModel:
    """Freeze the model's towers, which text does not reach; set the attention PACKED if it can be.

    A model supports it if it calls its attention through transformers' interface, passes `lengths`
    on, and computes softmax(q k) v with or without a soft cap. Other forms of attention, such as
    attention sinks, are recognized by the lack of SDPA support.
    """
    for tower in towers(model).values():
        tower.requires_grad_(False)
    if config.attention != "auto":
        return model
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    supported = (
        supports_attention_interface(model)
        and can_set_attention(model)
        and (supports_sdpa(model) or softcap is not None)
        and passes_lengths(model)
    )
    if supported:
        model.set_attn_implementation(PACKED)
    return model
