"""One-token rollout fine-tuning: the method, with torch and transformers alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from otr.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.objective import IGNORE_INDEX, LossOutput, Objective

if TYPE_CHECKING:
    from otr.checkpoint import load_checkpoint, save_checkpoint
    from otr.loss import linear_token_loss, token_loss
    from otr.model import load_model
    from otr.tokenizer import load_tokenizer

__all__ = [
    "IGNORE_INDEX",
    "DataConfig",
    "LoraConfig",
    "LossOutput",
    "MemoryConfig",
    "ModelConfig",
    "Objective",
    "OptimConfig",
    "TrainConfig",
    "Workers",
    "linear_token_loss",
    "load_checkpoint",
    "load_model",
    "load_tokenizer",
    "save_checkpoint",
    "token_loss",
]


_HOMES = {
    "linear_token_loss": "otr.loss",
    "load_checkpoint": "otr.checkpoint",
    "load_model": "otr.model",
    "load_tokenizer": "otr.tokenizer",
    "save_checkpoint": "otr.checkpoint",
    "token_loss": "otr.loss",
}


def __getattr__(name: str) -> Any:
    """What takes seconds to import, on first use: every process of a run imports this package."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'otr' has no attribute {name!r}")
