"""Attention within packed examples, without padding and without a mask.

In: queries, keys and values of one long row, [1, H, N, d], that holds the tokens of all examples of
a micro-batch one after another, and the examples' lengths. Out: what each token sees of its own
example. transformers' models find it under the name PACKED, once `register` has been called, and
hand on the keyword `lengths` of their forward pass; without that they attend as with SDPA.

Shapes: N tokens, H heads, G heads of keys and values, d width of a head, L tokens of an example.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from otr._compat import attention_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED = "otr_packed"
_LOOK = "otr_look"


class Lengths:
    """Of a row's examples. A class of its own, as torch.compile would make a program of each list.

    Args:
        each: one after another, of the whole row.
    """

    def __init__(self, each: Sequence[int]) -> None:
        self.each = list(each)

    @cached_property
    def ends(self) -> Int[Tensor, " E"]:
        """Where each example ends, after a 0; on the GPU if there is one."""
        ends = torch.tensor([0, *self.each]).cumsum(0, dtype=torch.int32)
        return ends.to("cuda" if torch.cuda.is_available() else "cpu")


def no_mask(device: torch.device) -> Tensor:
    """To be given as attention mask with `lengths`: transformers makes none of its own then."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def register() -> None:
    """Make PACKED known to transformers; once more does no harm."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


class _Looked(Exception):
    """A model's first layer asks for its attention."""


def hands_on_lengths(model: "PreTrainedModel") -> bool:
    """Whether the `lengths` that a model is given reach its attention; needs no weights.

    Tried: of a forward pass, all that comes before the first attention.
    """
    from transformers import AttentionInterface

    def look(*_: Any, lengths: Lengths | None = None, **__: Any) -> None:
        raise _Looked(lengths)

    before = attention_name(model.config)
    AttentionInterface.register(_LOOK, look)
    model.set_attn_implementation(_LOOK)
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        model.base_model(
            input_ids=ids,
            position_ids=ids,
            attention_mask=no_mask(ids.device),
            use_cache=False,
            lengths=Lengths([1, 1]),
        )
    except _Looked as found:
        return found.args[0] is not None
    except TypeError:  # it takes no such argument
        return False
    finally:
        model.set_attn_implementation(before)
    return False


@torch.compiler.disable  # its calls are as many as there are examples
def packed_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query: Float[Tensor, "1 H N d"],
    key: Float[Tensor, "1 G N d"],
    value: Float[Tensor, "1 G N d"],
    attention_mask: Tensor | None,
    *,
    lengths: Lengths | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "1 N H d"], None]:
    """Causal attention in each example; `sliding_window` and `softcap` as the model's config has.

    Attention weights are not dropped out, whatever the config says.

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
    parts = zip(*(x.split(lengths.each, dim=2) for x in (query, key, value)), strict=True)
    seen = [_one(q, k, v, scaling, sliding_window, softcap).transpose(1, 2) for q, k, v in parts]
    return torch.cat(seen, dim=1).contiguous(), None


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
    lengths: Lengths,
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    ends = lengths.ends
    longest = max(lengths.each)
    q_NHd, k_NGd, v_NGd = (x[0].transpose(0, 1) for x in (q, k, v))
    seen = varlen_attn(
        q_NHd,
        k_NGd,
        v_NGd,
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
