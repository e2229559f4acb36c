"""Helpers of the loss tests: objectives, logits, hidden states, and several ways to a gradient.

Shapes: T positions, V vocabulary, D width.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss, token_loss
from otr.loss.draws import draw_seed
from otr.loss.functional import _plain
from otr.loss.fused import BaseStates
from otr.loss.objective import names
from otr.loss.rows import Compared, loss_and_gradient_
from tests.otr.loss.oracle import generator, start

SFT, DFT = Objective("sft"), Objective("dft")
SAMPLED, HALF = Objective(num_samples=7), Objective(num_samples=7, estimator="half")
EXPECTED = Objective(estimator="expected")
OTHERS = {name: Objective(name) for name in names() if name not in ("otr", "sft", "dft")}
OTHERS["smoothed"] = Objective("sft", label_smoothing=0.2)
OTHERS["threshold"] = Objective("threshold", threshold=0.03)
OBJECTIVES = {
    "sft": SFT,
    "dft": DFT,
    "sampled": SAMPLED,
    "half": HALF,
    "expected": EXPECTED,
    **OTHERS,
}
MANY = {"sft": SFT, "dft": DFT, "sampled": Objective(), "half": HALF, "expected": EXPECTED}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
every_count = pytest.mark.parametrize(
    ("estimator", "num_samples"),
    [("expected", 1), *((e, k) for e in ("sampled", "half") for k in (1, 7, 256))],
)


def by_logits(logits: Tensor, target: Tensor, objective: Objective, **more) -> LossOutput:
    """`token_loss`, with the oracle's probabilities before training."""
    return token_loss(logits, target, objective, **{"start_T": start(target)} | more)


def through_linear(logits: Tensor, target: Tensor, objective: Objective, **more) -> LossOutput:
    vocabulary = logits.shape[-1]
    weight = torch.eye(vocabulary, dtype=logits.dtype)
    if "base_logits_TV" in more:
        more["base"] = BaseStates(more.pop("base_logits_TV"), weight)
    more = {"start_T": start(target)} | more
    return linear_token_loss(logits, weight, target, objective, **more)


both = pytest.mark.parametrize("function", [by_logits, through_linear])


class Elsewhere:
    """Stands for a generator on another device, which this machine need not have."""

    device = torch.device("cuda:1")


def rows(num: int, vocabulary: int, seed: int = 0, spread: float = 2) -> tuple[Tensor, Tensor]:
    numbers = generator(seed)
    logits = spread * torch.randn(num, vocabulary, dtype=torch.float64, generator=numbers)
    return logits.requires_grad_(), torch.randint(vocabulary, (num,), generator=numbers)


def gradient(logits: Tensor, target: Tensor, objective: Objective, seed: int = 0) -> Tensor:
    loss = by_logits(logits, target, objective, generator=generator(seed)).loss_sum
    return torch.autograd.grad(loss, logits)[0]


def by_rows(logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Return figures and gradient as `linear_token_loss` computes them."""
    z, position = logits.detach().clone(), torch.arange(len(logits))
    compared = Compared(start(target))
    seed = draw_seed(generator())
    return loss_and_gradient_(z, target, position, objective, seed, compared=compared), z


def by_token_loss(logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    seed, position = draw_seed(generator()), torch.arange(len(logits))
    figures = _plain(logits, target, objective, seed, position, start(target))
    return figures.detach(), gradient(logits, target, objective)


class Inputs:
    """Hidden states [T, D], a weight [V, D] and targets, a fifth of which are ignored."""

    def __init__(self, t: int = 13, v: int = 29, d: int = 8, dtype=torch.float64) -> None:
        numbers = generator(t + v)
        self.hidden = torch.randn(t, d, generator=numbers).to(dtype).requires_grad_()
        self.weight = (1.5 * torch.randn(v, d, generator=numbers) / math.sqrt(d)).to(dtype)
        self.weight.requires_grad_()
        self.target = torch.randint(v, (t,), generator=numbers)
        self.target[1::5] = IGNORE_INDEX

    def loss(self, objective: Objective, **more) -> LossOutput:
        more = {"generator": generator(), "start_T": start(self.target)} | more
        return linear_token_loss(self.hidden, self.weight, self.target, objective, **more)

    def full(self, objective: Objective, change: Callable = lambda z: z) -> LossOutput:
        """Return the loss computed from all logits at once."""
        logits = change(self.hidden @ self.weight.T)
        return by_logits(logits, self.target, objective, generator=generator())

    def gradients(self, loss: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.hidden, self.weight, *more))
