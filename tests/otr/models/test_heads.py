"""`head` describes what a model's config does to its logits, so that the loss does the same."""

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from otr import Objective, linear_token_loss, token_loss
from otr.models.layout import Layout
from otr.models.parts import head, hidden_states

SIZE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: list[tuple[type[PreTrainedModel], Any]] = [
    (Qwen2ForCausalLM, Qwen2Config(**SIZE)),
    (PhiForCausalLM, PhiConfig(**SIZE)),  # a head with a bias
    (CohereForCausalLM, CohereConfig(**SIZE, logit_scale=0.25)),
    (GraniteForCausalLM, GraniteConfig(**SIZE, logits_scaling=4.0)),
    (Gemma2ForCausalLM, Gemma2Config(**SIZE, head_dim=16, final_logit_softcapping=0.5)),
]


@pytest.mark.parametrize(("kind", "config"), MODELS, ids=lambda m: getattr(m, "__name__", ""))
def test_the_loss_equals_that_of_the_models_own_logits(
    kind: type[PreTrainedModel], config: Any
) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids_BS = torch.randint(3, 61, (2, 12))
    logits_BSV = model(ids_BS, use_cache=False).logits
    hidden_BSD = hidden_states(model, ids_BS, Layout.of(torch.ones_like(ids_BS))).unflatten(
        0, ids_BS.shape
    )
    lm_head = head(model)
    torch.testing.assert_close(lm_head.logits(hidden_BSD), logits_BSV)
    ours = linear_token_loss(
        hidden_BSD[:, :-1].flatten(0, 1),
        lm_head.weight,
        ids_BS[:, 1:].flatten(),
        Objective("sft"),
        bias=lm_head.bias,
        logit_scale=lm_head.logit_scale,
        softcap=lm_head.softcap,
    )
    plain = token_loss(logits_BSV[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten(), Objective("sft"))
    torch.testing.assert_close(ours.loss_sum, plain.loss_sum)
    # With respect to the last layer, since a tied embedding has a second gradient.
    last = next(iter(model.base_model.layers[-1].parameters()))
    [slope] = torch.autograd.grad(ours.loss_sum, last)
    [wanted] = torch.autograd.grad(plain.loss_sum, last)
    torch.testing.assert_close(slope, wanted)
    assert wanted.abs().max() > 0
