"""A Hugging Face causal language model and its tokenizer, ready to train on packed rows.

Shapes: B rows, S row length, N tokens that are no padding, D width, V vocabulary.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from otr.attention import PACKED, no_mask, register
from otr.config import ModelConfig


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            config.path, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no tokenizer at {config.path!r}: give a Hugging Face directory or hub name ({reason})"
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"the tokenizer of {config.path!r} has no chat template: add chat_template.jinja"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """The model with float32 weights on the CPU.

    Raises:
        ValueError: it can't be loaded, or `tokenizer` has ids that the model has no row for.
    """
    register()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=torch.float32,
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            attn_implementation=PACKED if config.attention == "auto" else config.attention,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no causal language model at {config.path!r}: {reason}") from error
    rows = len(cast(Tensor, model.get_input_embeddings().weight))
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"vocabulary mismatch at {config.path!r}: the tokenizer has {len(tokenizer)} tokens, "
            f"the model {rows} embeddings; use the model's own tokenizer"
        )
    return model


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
    real_BS = segment_ids_BS > 0
    position_BS = position_ids(segment_ids_BS)
    if model.config._attn_implementation != PACKED:
        inside = model.base_model(
            input_ids=input_ids_BS, position_ids=position_BS, use_cache=False
        ).last_hidden_state
        return inside[real_BS]
    position_N = position_BS[real_BS]
    ends = [*(position_N == 0).nonzero().flatten().tolist(), len(position_N)]
    return model.base_model(
        input_ids=input_ids_BS[real_BS][None],
        position_ids=position_N[None],
        attention_mask=no_mask(position_N.device),
        use_cache=False,
        lengths=[end - start for start, end in pairwise(ends)],
    ).last_hidden_state[0]


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
