"""Attention within packed examples, without padding and without a mask.

The queries, keys and values of all examples of a micro-batch form one long row, [1, H, N, d], one
example after another; each token attends to its own example. After `register`, transformers' models
find this attention under the name PACKED. They pass the keyword `lengths` of their forward pass on
to it; without `lengths` it is the same as SDPA.

Shapes: N tokens, H heads, G heads of keys and values, d width of a head, L tokens of an example.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from otr._compat import attention_name
from otr.models.layout import Lengths
from otr.models.structure import trunk

PACKED = "otr_packed"
_PROBE = "otr_probe"


def no_mask(device: torch.device) -> Tensor:
    """Return an attention mask to pass with `lengths`: it keeps transformers from building one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def register() -> None:
    """Make PACKED known to transformers; repeated calls are harmless."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


class _AttentionReached(Exception):
    """Ends a forward pass at the first layer's attention; holds the `lengths` that arrived."""


def passes_lengths(model: PreTrainedModel) -> bool:
    """Return whether the `lengths` passed to a model reach its attention; needs no weights.

    This runs a forward pass up to the first attention.
    """

    def probe(*_: Any, lengths: Lengths | None = None, **__: Any) -> None:
        raise _AttentionReached(lengths)

    before = attention_name(model.config)
    AttentionInterface.register(_PROBE, probe)
    model.set_attn_implementation(_PROBE)
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        trunk(model)(
            input_ids=ids,
            position_ids=ids,
            attention_mask=no_mask(ids.device),
            use_cache=False,
            lengths=Lengths([1, 1]),
        )
    except _AttentionReached as reached:
        return reached.args[0] is not None
    except TypeError:  # the model accepts no such argument
        return False
    finally:
        model.set_attn_implementation(before)
    return False


@torch.compiler.disable  # the number of calls depends on the number of examples
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
    """Attend causally within each example.

    On a GPU in bfloat16 or float16 this is torch's flash attention for sequences of several
    lengths, elsewhere one call of SDPA per example. There is no dropout of attention weights,
    whatever the model's config says.

    Args:
        module: the attention layer.
        query: of all examples.
        key: of all examples.
        value: of all examples.
        attention_mask: ignored with `lengths`.
        lengths: of the examples; None attends with SDPA instead.
        scaling: factor of the scores; None: 1 / sqrt(d).
        sliding_window: number of latest tokens that a token attends to; None: all.
        softcap: the scores z become ``softcap * tanh(z / softcap)``.
        more: passed on to SDPA.
    """
    if lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, softcap=softcap, **more
        )
    query, key, value = _as_autocast(query, key, value)
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and softcap is None:
        return _flash(query, key, value, lengths, scaling, sliding_window), None
    parts = zip(*(x.split(lengths.values, dim=2) for x in (query, key, value)), strict=True)
    outs = [
        _attend_one(q, k, v, scaling, sliding_window, softcap).transpose(1, 2) for q, k, v in parts
    ]
    return torch.cat(outs, dim=1).contiguous(), None


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in autocast's dtype, if it is on.

    Queries and keys come in float32: rotary positions and norms multiply them by float32.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _attend_one(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Attend within one example, [1, H, L, d] each."""
    grouped = q.shape[1] != k.shape[1]
    length = q.shape[2]
    narrow = window is not None and window < length
    if softcap is None and not narrow:
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=grouped
        )
    visible_LL = q.new_ones(length, length, dtype=torch.bool).tril()
    if narrow:
        assert window is not None
        visible_LL = visible_LL.triu(1 - window)
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, visible_LL, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~visible_LL, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def _flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Lengths,
    scale: float | None,
    window: int | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imports torch._dynamo, which takes seconds

    ends = lengths.ends
    longest = max(lengths.values)
    q_NHd, k_NGd, v_NGd = (x[0].transpose(0, 1) for x in (q, k, v))
    out = varlen_attn(
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
    assert isinstance(out, Tensor)
    return out[None]
