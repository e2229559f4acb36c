"""Objectives and their losses: pure functions from logits or hidden states to sums.

Read `objective` (the mathematics), `objectives` (each of them), `functional` (the public losses),
`fused` (the head and the loss chunk by chunk), `rows` and `draws` (a chunk in torch), then
`kernels` (a chunk in Triton).
"""

from typing import TYPE_CHECKING

from otr._lazy import lazy_names
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective

if TYPE_CHECKING:
    from otr.loss.functional import linear_token_loss, token_loss

__all__ = ["IGNORE_INDEX", "LossOutput", "Objective", "linear_token_loss", "token_loss"]
# These import torch, and configurations need the objective alone.
_LOSSES = ("linear_token_loss", "token_loss")
__getattr__ = lazy_names(__name__, dict.fromkeys(_LOSSES, "otr.loss.functional"))
