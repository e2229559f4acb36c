"""What training computes with a causal language model: hidden states, and logits from them.

All functions accept a transformers model, with or without peft's adapters.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from otr._compat import attention_name
from otr.models.attention import PACKED, no_mask
from otr.models.layout import Layout, Lengths
from otr.models.structure import trunk, without_adapters
from otr.models.unpacked import is_unpacked, unpacked_states

TOKEN_MULTIPLE = 128
"""Numbers of tokens that are computed in bfloat16 on the CPU are multiples of this one."""


def hidden_states(
    model: PreTrainedModel, input_ids_BS: Int[Tensor, "B S"], layout: Layout
) -> Float[Tensor, "N D"]:
    """Return the head's input for each token that is not padding, in row order.

    Examples of the same packed row do not attend to each other. With the attention PACKED the model
    never computes on padding. A model that is marked in `otr.models.unpacked` gets each example in
    a row of its own.
    """
    model = without_adapters(model)
    if is_unpacked(model):
        ids_N = input_ids_BS.reshape(-1)[layout.place_N]
        return unpacked_states(model, ids_N, layout.lengths, input_ids_BS.numel())
    if attention_name(model.config) != PACKED:
        hidden_BSD = trunk(model)(
            input_ids=input_ids_BS, position_ids=layout.position_BS, use_cache=False
        ).last_hidden_state
        return hidden_BSD.flatten(0, 1)[layout.place_N]
    count = len(layout.place_N)
    extra = _extra_tokens(count, input_ids_BS.device)
    ids_N, position_N = (x.reshape(-1)[layout.place_N] for x in (input_ids_BS, layout.position_BS))
    ids_N = torch.cat([ids_N, ids_N.new_zeros(extra)])
    position_N = torch.cat(
        [position_N, torch.arange(extra, dtype=position_N.dtype, device=position_N.device)]
    )
    hidden_1ND = trunk(model)(
        input_ids=ids_N[None],
        position_ids=position_N[None],
        attention_mask=no_mask(position_N.device),
        use_cache=False,
        lengths=Lengths([*layout.lengths, *([extra] if extra else [])]),
    ).last_hidden_state
    return hidden_1ND[0, :count]


def _extra_tokens(count: int, device: torch.device) -> int:
    """Return how many tokens to compute, as an example of their own, and drop.

    In bfloat16 on the CPU, oneDNN compiles and keeps a kernel for each number of tokens that it
    meets; packed rows meet a new one in most steps, which took gigabytes.
    """
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return -count % TOKEN_MULTIPLE if count else TOKEN_MULTIPLE
    return 0 if count else 1  # other ranks may wait for this rank's pass


@dataclass(frozen=True)
class Head:
    """How a model turns hidden states into logits, in the arguments of `linear_token_loss`."""

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    logit_scale: float
    softcap: float | None

    def logits(self, hidden_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T V"]:
        """Compute the logits of T hidden states in float32."""
        logits_TV = torch.nn.functional.linear(hidden_TD, self.weight, self.bias).float()
        logits_TV = logits_TV * self.logit_scale
        if self.softcap is None:
            return logits_TV
        return self.softcap * torch.tanh(logits_TV / self.softcap)


def head(model: PreTrainedModel) -> Head:
    """Return the language-model head (tied or not) with the config's scale and soft cap."""
    model = without_adapters(model)
    layer = model.get_output_embeddings()
    config = model.config.get_text_config()
    return Head(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        # Cohere and Falcon-H1 multiply, Granite divides.
        logit_scale=(getattr(config, "logit_scale", None) or 1.0)
        * (getattr(config, "lm_head_multiplier", None) or 1.0)
        / (getattr(config, "logits_scaling", None) or 1.0),
        # Gemma and Recurrent Gemma.
        softcap=getattr(config, "final_logit_softcapping", None)
        or getattr(config, "logits_soft_cap", None),
    )
