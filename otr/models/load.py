"""A Hugging Face causal language model and its tokenizer, ready to train on packed rows.

Shapes: B rows, S row length, N tokens that are no padding, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from otr.config import ModelConfig
from otr.models.architecture import shape_of
from otr.models.attention import PACKED, Lengths, hands_on_lengths, no_mask, register


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
    shape = shape_of(config)
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
        model._supports_attention_backend
        and model._can_set_attn_implementation()
        and (model._supports_sdpa or softcap is not None)
        and hands_on_lengths(model)
    )
    if takes:
        model.set_attn_implementation(PACKED)
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """Transformers' own model, inside of which peft has put its adapters; or just the model."""
    inside = getattr(model, "get_base_model", None)
    return model if inside is None else inside()


def position_ids(segment_ids_BS: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Positions that start again at 0 with each segment.

    transformers reads the boundaries of packed examples off these, whatever the attention backend.
    """
    place_S = torch.arange(segment_ids_BS.shape[1], device=segment_ids_BS.device)
    new_BS = torch.ones_like(segment_ids_BS, dtype=torch.bool)
    new_BS[:, 1:] = segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]
    start_BS = torch.where(new_BS, place_S, 0).cummax(dim=1).values
    return place_S - start_BS


def hidden_states(
    model: PreTrainedModel, input_ids_BS: Int[Tensor, "B S"], segment_ids_BS: Int[Tensor, "B S"]
) -> Float[Tensor, "N D"]:
    """What the head sees of the tokens with a segment, row by row, each example on its own.

    Padding never reaches a model that has the attention PACKED.
    """
    model = plain(model)
    real_BS = segment_ids_BS > 0
    position_BS = position_ids(segment_ids_BS)
    if model.config._attn_implementation != PACKED:
        inside = model.base_model(
            input_ids=input_ids_BS, position_ids=position_BS, use_cache=False
        ).last_hidden_state
        return inside[real_BS]
    ids_N, position_N = input_ids_BS[real_BS], position_BS[real_BS]
    count = len(ids_N)
    if not count:  # a pass through all weights nevertheless: other ranks may wait for it
        ids_N, position_N = input_ids_BS.new_zeros(1), position_BS.new_zeros(1)
    ends = [*(position_N == 0).nonzero().flatten().tolist(), len(position_N)]
    inside = model.base_model(
        input_ids=ids_N[None],
        position_ids=position_N[None],
        attention_mask=no_mask(position_N.device),
        use_cache=False,
        lengths=Lengths([end - start for start, end in pairwise(ends)]),
    ).last_hidden_state
    return inside[0, :count]


@dataclass(frozen=True)
class Head:
    """How a model makes logits of what its head sees, in the words of `linear_token_loss`."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    logit_scale: float
    softcap: float | None

    def logits(self, hidden_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """All of them, in float32."""
        logits_TV = torch.nn.functional.linear(hidden_TD, self.weight, self.bias).float()
        logits_TV = logits_TV * self.logit_scale
        if self.softcap is None:
            return logits_TV
        return self.softcap * torch.tanh(logits_TV / self.softcap)


def head(model: PreTrainedModel) -> Head:
    """The language-model head (tied or not) with what the model's config does to its logits."""
    model = plain(model)
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        # Cohere multiplies by the one, Granite divides by the other.
        logit_scale=(getattr(config, "logit_scale", None) or 1.0)
        / (getattr(config, "logits_scaling", None) or 1.0),
        softcap=getattr(config, "final_logit_softcapping", None),  # Gemma
    )
