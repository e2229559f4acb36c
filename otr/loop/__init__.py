"""The training loop, and what it is made of: policy, ranks, checkpoints, evaluation."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otr.loop.loop import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    """Import torch only when the loop is first used."""
    if name == "train":
        return import_module("otr.loop.loop").train
    raise AttributeError(f"module 'otr.loop' has no attribute {name!r}")
