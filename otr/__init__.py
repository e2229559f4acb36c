"""One-token rollout fine-tuning: the method, with torch and transformers alone."""

from typing import Any

from otr.checkpoint import load_checkpoint, save_checkpoint
from otr.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.loss import linear_token_loss, token_loss
from otr.objective import IGNORE_INDEX, LossOutput, Objective

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


def __getattr__(name: str) -> Any:
    """`load_model` and `load_tokenizer` on first use: transformers takes seconds to import."""
    if name in ("load_model", "load_tokenizer"):
        from otr import model

        return getattr(model, name)
    raise AttributeError(f"module 'otr' has no attribute {name!r}")
