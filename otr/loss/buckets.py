"""Which targets a loss learns from: tokens and gradient, by the probability of the target.

The size of a token's gradient is that of its target's logit, |dz_y| = |P p(y) - Q q(y) - Y|. All
other logits together have the same size with the other sign (unless there is a z-loss), so it is
half of the L1 norm of the row where no other logit is pushed up, which is so for every objective
that is a weight on SFT: there it is w (1 - p(y)). It is known before the gradients of the other
logits, so that it costs nothing; their L1 norm would cost a pass over the logits.

Shapes: S scored positions, B buckets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

EDGES = (0.01, 0.1, 0.5, 0.9)
"""Probabilities of the target between two buckets; a bucket has its lower edge."""
BUCKETS = tuple(
    f"p_{low:.2f}_to_{high:.2f}" for low, high in zip((0.0, *EDGES), (*EDGES, 1.0), strict=True)
)
"""Names of the buckets, the least likely targets first, which is their alphabetical order."""


def sums_by_bucket(
    nll_S: Float[Tensor, " S"], size_S: Float[Tensor, " S"]
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """Return the number of tokens, and the sum of their sizes, in each bucket.

    Nothing makes the host wait for a GPU.

    Args:
        nll_S: -log p(y), in nats.
        size_S: of each token's gradient.
    """
    import torch  # the report, which needs the names of the buckets, starts without it

    bucket_S = torch.zeros_like(nll_S, dtype=torch.int64)
    for edge in EDGES:
        bucket_S += nll_S <= -math.log(edge)
    inside_BS = bucket_S == torch.arange(len(BUCKETS), device=nll_S.device)[:, None]
    return inside_BS.sum(1), torch.where(inside_BS, size_S, 0).sum(1)


def shares(tokens: list[float], gradient: list[float]) -> dict[str, float]:
    """Return the share of the tokens and of the gradient in each bucket, by their metric's name.

    Args:
        tokens: number of tokens in each bucket.
        gradient: sum of the sizes of their gradients.
    """
    found: dict[str, float] = {}
    for name, sums in (("token_share", tokens), ("gradient_share", gradient)):
        total = sum(sums) or 1.0  # an objective may have no gradient
        parts = zip(BUCKETS, sums, strict=True)
        found |= {f"{name}/{bucket}": each / total for bucket, each in parts}
    return found
