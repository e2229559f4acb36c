"""The training loop and its parts: policy, parallelism, checkpoints, evaluation, run identity."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otr.loop.loop import BadStep, Hooks, train

__all__ = ["BadStep", "Hooks", "train"]


def __getattr__(name: str) -> Any:
    """Import torch only when the loop is first used."""
    if name in __all__:
        return getattr(import_module("otr.loop.loop"), name)
    raise AttributeError(f"module 'otr.loop' has no attribute {name!r}")
