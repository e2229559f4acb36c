"""Draws are unbiased, have the stated variance, and do not depend on batching."""

import math

import pytest
import torch
from torch import Tensor

from otr import IGNORE_INDEX, Objective
from otr.loss.draws import RowKeys, draw_each, row_keys, uniforms
from tests.otr.loss import oracle
from tests.otr.loss.losses import HALF, SAMPLED, both, gradient, rows
from tests.otr.loss.oracle import generator


def many_gradients(logits_V: Tensor, target: int, objective: Objective, count: int) -> Tensor:
    """Return independent samples of one position's gradient, [count, V]."""
    logits = logits_V.detach().expand(count, -1).clone().requires_grad_()
    return gradient(logits, torch.full((count,), target), objective)


def expectation(logits_V: Tensor, target: int, objective: Objective) -> Tensor:
    o = Objective("otr", 1, objective.mismatch_reward, 1.0, objective.temperature, "expected")
    one = logits_V.detach()[None]
    return oracle.gradient(one, oracle.terms(one, torch.tensor([target]), o))[0]


@pytest.mark.parametrize("kappa", [0.7, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_samples", [1, 7, 256])
@pytest.mark.parametrize("estimator", ["sampled", "half"])
def test_the_gradient_is_unbiased(
    estimator: str, num_samples: int, beta: float, kappa: float
) -> None:
    objective = Objective("otr", num_samples, beta, 1.0, kappa, estimator)
    (logits, *_), target = rows(1, 70, seed=1, spread=0.5)[0].detach(), 3
    logits[target] = 2.5  # makes both hits and misses frequent
    made = many_gradients(logits, target, objective, 40_000 // num_samples)
    error = made.mean(0) - expectation(logits, target, objective)
    standard_error = made.std(0) / math.sqrt(len(made))
    assert (error.abs() <= 4 * standard_error + 1e-12).all()


@pytest.mark.parametrize(("beta", "kappa"), [(-1.0, 0.7), (-0.1, 1.3), (0.0, 1.0), (1.0, 1.0)])
def test_variance_falls_as_one_over_k_and_half_has_less(beta: float, kappa: float) -> None:
    logits = rows(1, 30, seed=2, spread=1)[0][0]
    variance = {
        (estimator, k): many_gradients(
            logits, 5, Objective("otr", k, beta, 1.0, kappa, estimator), 4000
        )
        .var(0)
        .sum()
        .item()
        for estimator in ("sampled", "half")
        for k in (1, 16)
    }
    assert 14 < variance["sampled", 1] / variance["sampled", 16] < 18.5
    if beta == 0:
        assert variance["half", 1] < 1e-28
    else:
        assert 14 < variance["half", 1] / variance["half", 16] < 18.5
    for k in (1, 16):
        assert variance["half", k] <= variance["sampled", k]


@pytest.mark.parametrize("objective", [SAMPLED, HALF], ids=["sampled", "half"])
@both
def test_draws_follow_the_position_not_the_batch(function, objective: Objective) -> None:
    logits, target = rows(8, 50)
    whole = gradient(logits, target, objective)
    order = torch.tensor([6, 2, 7, 3])
    target[2] = IGNORE_INDEX
    part = function(
        logits[order], target[order], objective, generator=generator(), position_T=order
    )
    got = torch.autograd.grad(part.loss_sum, logits)[0][[3, 6, 7]]
    torch.testing.assert_close(got, whole[[3, 6, 7]], rtol=1e-12, atol=1e-12)


def test_uniforms_are_uniform_and_unrelated() -> None:
    keys = RowKeys(*(key[:, None] for key in row_keys(7, torch.arange(2000))))
    draws = uniforms(keys, torch.arange(64), word=0)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 64, 0, 1)
    expected = draws.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)
    for other in (uniforms(keys, torch.arange(64), word=1), draws.roll(1, 0), draws.roll(1, 1)):
        pair = torch.stack([draws.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / math.sqrt(draws.numel())


def test_tokens_are_drawn_by_weight_and_never_one_of_weight_0() -> None:
    weight = torch.rand(200, generator=generator()) ** 4
    weight[[0, 63, 64, 130, 199]] = 0
    numbers = torch.rand(2, 1, 200_000, generator=generator(1))
    drawn = draw_each(weight[None], *numbers)[0]
    counts, expected = drawn.bincount(minlength=200), 200_000 * weight / weight.sum()
    assert not counts[weight == 0].any()
    often = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[often].sum()
    assert chi_square < often.sum() + 5 * math.sqrt(2 * often.sum())
    edges = draw_each(
        weight[None], torch.tensor([[0.0, 1 - 2**-24]]), torch.tensor([[0.0, 1 - 2**-24]])
    )
    assert edges.tolist() == [[1, 198]]


def test_a_row_without_any_weight_gives_a_token() -> None:
    """As at a target of all the probability; the blocks of 32,000 entries are no power of two."""
    for vocabulary in (200, 32_000):
        drawn = draw_each(torch.zeros(1, vocabulary), *torch.rand(2, 1, 4, generator=generator()))
        assert drawn.min() >= 0 and drawn.max() < vocabulary
