"""The optimizers, and how much memory their state takes."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from otr.config import OptimConfig
from otr.optim.combined import CombinedOptimizer

_FLOAT = 4  # bytes: trained weights and their state are float32
_SMALLEST_8BIT, _BLOCK = 4096, 256  # bitsandbytes': elements of a parameter, of a block


@dataclass(frozen=True)
class OptimizerKind:
    """A kind of optimizer."""

    source: str
    """Where it is described."""
    make: Callable[[nn.Module, OptimConfig], torch.optim.Optimizer]
    state_bytes: Callable[[Tensor, bool], int]
    """(parameter, whether it is a hidden matrix) -> bytes of its state."""


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trained parameters. Weight decay is for matrices only.

    Raises:
        ValueError: a package that the optimizer needs is not installed.
    """
    check_installed(config)
    return OPTIMIZERS[config.optimizer].make(model, config)


def check_installed(config: OptimConfig) -> None:
    """Check that the package of the optimizer is installed.

    Raises:
        ValueError: it is not; the message says how to install it.
    """
    if config.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "optim.optimizer is 'adamw_8bit', but the package bitsandbytes is not installed: run "
            "pip install bitsandbytes, or use 'adamw' or 'adafactor'"
        )


def state_bytes(model: nn.Module, config: OptimConfig) -> int:
    """Return the bytes that the optimizer's state takes, over all trained parameters."""
    kind, hidden = OPTIMIZERS[config.optimizer], set(_hidden_matrices(model))
    return sum(kind.state_bytes(p, p in hidden) for p in _trained(model))


def _trained(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained matrices that are neither embeddings nor the head."""
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in model.modules():
        outputs = getattr(module, "get_output_embeddings", lambda: None)()
        tables += [] if outputs is None else [outputs.weight]
    known = set(map(id, tables))
    return [p for p in _trained(model) if p.ndim == 2 and id(p) not in known]


def _groups(parameters: Iterable[nn.Parameter], config: OptimConfig) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay for matrices only.

    None is empty: torch's distributed checkpoint loads no settings for empty groups.
    """
    parameters = [*parameters]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _adamw_of(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    groups = _groups(parameters, config)
    return torch.optim.AdamW(groups, config.lr, config.betas, config.eps, fused=True)


def _adamw(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    return _adamw_of(_trained(model), config)


def _adamw_8bit(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # an optional package

    groups = _groups(_trained(model), config)
    return AdamW8bit(groups, config.lr, config.betas, config.eps, min_8bit_size=_SMALLEST_8BIT)


def _muon(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return Muon for hidden matrices and AdamW for the rest, with updates of the same RMS."""
    hidden = _hidden_matrices(model)
    known = set(hidden)
    rest = [p for p in _trained(model) if p not in known]
    parts = [_adamw_of(rest, config)] if rest else []
    if hidden:
        # Scaled so that one learning rate suits both.
        scale, decay = "match_rms_adamw", config.weight_decay
        muon = torch.optim.Muon(hidden, config.lr, decay, adjust_lr_fn=scale)
        parts.insert(0, muon)
    return CombinedOptimizer(*parts)


def _adafactor(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(_groups(_trained(model), config), config.lr)


def _two_moments(parameter: Tensor, hidden: bool) -> int:
    return 2 * _FLOAT * parameter.numel()


def _two_moments_in_8_bits(parameter: Tensor, hidden: bool) -> int:
    """Return the bytes of two moments, each with a float per block; small ones are float32."""
    size = parameter.numel()
    if size < _SMALLEST_8BIT:
        return _two_moments(parameter, hidden)
    return 2 * (size + _FLOAT * math.ceil(size / _BLOCK))


def _momentum_if_hidden(parameter: Tensor, hidden: bool) -> int:
    return _FLOAT * parameter.numel() if hidden else _two_moments(parameter, hidden)


def _rows_and_columns(parameter: Tensor, hidden: bool) -> int:
    if parameter.ndim < 2:
        return _FLOAT * parameter.numel()
    rows, columns = parameter.shape[-2:]
    return _FLOAT * (parameter.numel() // columns + parameter.numel() // rows)


OPTIMIZERS = {
    "adamw": OptimizerKind("arXiv:1711.05101, torch.optim.AdamW", _adamw, _two_moments),
    "adamw_8bit": OptimizerKind(
        "arXiv:2110.02861, bitsandbytes.optim.AdamW8bit", _adamw_8bit, _two_moments_in_8_bits
    ),
    "muon": OptimizerKind("arXiv:2502.16982, torch.optim.Muon", _muon, _momentum_if_hidden),
    "adafactor": OptimizerKind(
        "arXiv:1804.04235, torch.optim.Adafactor", _adafactor, _rows_and_columns
    ),
}
"""By the names of `OptimConfig.optimizer`."""
