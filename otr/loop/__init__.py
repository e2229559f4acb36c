"""The training loop and its parts: policy, parallelism, checkpoints, evaluation, run identity."""

from typing import TYPE_CHECKING

from otr._lazy import lazy_names

if TYPE_CHECKING:
    from otr.loop.loop import BadStep, Hooks, train

__all__ = ["BadStep", "Hooks", "train"]
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "otr.loop.loop"))  # imports torch
