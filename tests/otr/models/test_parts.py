"""Hidden states of packed rows."""

from pathlib import Path

import pytest
import torch

from otr.config import ModelConfig
from otr.models.layout import Layout
from otr.models.load import load_model
from otr.models.parts import TOKEN_MULTIPLE, hidden_states
from tests.assets.tiny import make_tiny_model


@pytest.mark.parametrize("tokens", [0, 1, 7, 2 * TOKEN_MULTIPLE])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_added_tokens_change_no_other_and_are_dropped(
    tokens: int, bfloat16: bool, tmp_path: Path
) -> None:
    """In bfloat16 the model sees few different numbers of tokens; else only those there are."""
    model = load_model(ModelConfig(str(make_tiny_model(tmp_path)))).eval()
    ids = torch.arange(2 * TOKEN_MULTIPLE + 3)[None] % model.config.vocab_size
    segments = torch.zeros_like(ids)
    segments[:, :tokens] = 1 + (torch.arange(tokens) > 2)  # two examples, then padding
    seen: list[int] = []
    hook = model.base_model.embed_tokens.register_forward_pre_hook(
        lambda module, arguments: seen.append(arguments[0].shape[1])
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        packed = hidden_states(model, ids, Layout.of(segments))
    hook.remove()
    multiple = TOKEN_MULTIPLE if bfloat16 else 1
    assert seen == [max(multiple, -(-tokens // multiple) * multiple)]
    assert len(packed) == tokens
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        parts = [ids[:, : min(3, tokens)], ids[:, 3:tokens]]
        alone = [model.base_model(part).last_hidden_state[0] for part in parts if part.numel()]
    if alone:
        torch.testing.assert_close(packed.float(), torch.cat(alone).float(), rtol=0.02, atol=0.02)
