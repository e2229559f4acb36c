"""Attention within packed examples, without padding and without a mask.

In: queries, keys and values of one long row, [1, H, N, d], that holds the tokens of all examples of
a micro-batch one after another, and the examples' lengths. Out: what each token sees of its own
example. transformers' models find it under the name PACKED, once `register` has been called, and
hand on the keyword `lengths` of their forward pass; without that they attend as with SDPA.

Shapes: N tokens, H heads, d width of a head, L tokens of an example.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PACKED = "otr_packed"


def no_mask(device: torch.device) -> Tensor:
    """To be given as attention mask with `lengths`: transformers makes none of its own then."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def register() -> None:
    """Make PACKED known to transformers; once more does no harm."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Float[Tensor, "1 H N d"],
    key: Float[Tensor, "1 G N d"],
    value: Float[Tensor, "1 G N d"],
    attention_mask: Tensor | None,
    *,
    lengths: Sequence[int] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "1 N H d"], None]:
    """Causal attention in each example; `sliding_window` and `softcap` as the model's config has.

    On a GPU in bfloat16 or float16 it is torch's flash attention for examples of several lengths,
    elsewhere one call of SDPA an example.
    """
    if lengths is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **more
        )
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and softcap is None:
        return _flash(query, key, value, lengths, scaling, sliding_window), None
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    seen = [_one(q, k, v, scaling, sliding_window, softcap) for q, k, v in parts]
    return torch.cat(seen, dim=2).transpose(1, 2), None


def _one(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Of one example, [1, H, L, d] each."""
    grouped = q.shape[1] != k.shape[1]
    length = q.shape[2]
    narrow = window is not None and window < length
    if softcap is None and not narrow:
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    seen_LL = q.new_ones(length, length, dtype=torch.bool).tril()
    if narrow:
        assert window is not None
        seen_LL = seen_LL.triu(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, seen_LL, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen_LL, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = torch.tensor([0, *lengths], device=q.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    seen = varlen_attn(
        *(x[0].transpose(0, 1) for x in (q, k, v)),
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(seen, Tensor)
    return seen[None]
