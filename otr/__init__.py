"""Fine-tuning of language models with token-level objectives, one-token rollout first.

This package needs only torch and transformers; its subpackage `otr.training` also needs Ray.
"""

from typing import TYPE_CHECKING

from otr import _deprecated
from otr._lazy import lazy_names
from otr.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective

if TYPE_CHECKING:
    from otr.loop.checkpoint import load_checkpoint, save_checkpoint
    from otr.loss.functional import linear_token_loss, token_loss
    from otr.loss.fused import BaseStates
    from otr.models.load import load_model
    from otr.models.tokenizer import load_tokenizer

__all__ = [
    "IGNORE_INDEX",
    "BaseStates",
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

_deprecated.install_moved_modules()

_HOMES = {
    "BaseStates": "otr.loss.fused",
    "linear_token_loss": "otr.loss.functional",
    "load_checkpoint": "otr.loop.checkpoint",
    "load_model": "otr.models.load",
    "load_tokenizer": "otr.models.tokenizer",
    "save_checkpoint": "otr.loop.checkpoint",
    "token_loss": "otr.loss.functional",
}
# These import torch, which takes seconds, and every process of a run imports this package.
__getattr__ = lazy_names(__name__, _HOMES)
