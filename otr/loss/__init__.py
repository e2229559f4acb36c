"""Objectives and their losses: pure functions from logits or hidden states to sums.

Read `objective` (the mathematics), `functional` (the public losses), `fused` (the head and the loss
chunk by chunk), `rows` and `draws` (a chunk in torch), then `kernels` (a chunk in Triton).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective

if TYPE_CHECKING:
    from otr.loss.functional import linear_token_loss, token_loss

__all__ = ["IGNORE_INDEX", "LossOutput", "Objective", "linear_token_loss", "token_loss"]


def __getattr__(name: str) -> Any:
    """Import torch only when a loss is first used: configurations need the objective alone."""
    if name in ("linear_token_loss", "token_loss"):
        return getattr(import_module("otr.loss.functional"), name)
    raise AttributeError(f"module 'otr.loss' has no attribute {name!r}")
