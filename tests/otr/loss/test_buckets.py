"""Tokens and gradients by the probability of the target, and the weight as a function of it."""

import math

import pytest
import torch

from otr import IGNORE_INDEX, Objective
from otr.loss.buckets import BUCKETS, EDGES, shares, sums_by_bucket
from otr.loss.curve import OTHERS, depends_on_others, weights
from otr.loss.objective import names
from tests.otr.loss.losses import Inputs, both, every_objective, generator

POINTS = (0.001, 0.1, 0.3, 0.7, 0.99)


@every_objective
@both
def test_sums_are_of_the_gradients_of_the_targets_logits(function, objective: Objective) -> None:
    """With weights, some of them negative, and a position that is not scored."""
    p = torch.tensor([0.005, 0.02, 0.03, 0.2, 0.6, 0.95, 0.99], dtype=torch.float64)
    others = torch.rand(7, 5, generator=generator(1), dtype=torch.float64)
    others = (1 - p[:, None]) * others / others.sum(1, keepdim=True)
    logits = torch.cat([p[:, None], others], 1).log().requires_grad_()
    target = torch.tensor([0, 0, 0, 0, 0, 0, IGNORE_INDEX])
    weight = torch.tensor([1.0, 0.5, -2.0, 1.0, 1.0, 3.0, 1.0])
    out = function(logits, target, objective, weight_T=weight, generator=generator())
    (dz,) = torch.autograd.grad(out.loss_sum, logits)
    assert out.token_sums.tolist() == [1, 2, 1, 1, 1]
    size = dz[:6, 0].abs()
    wanted = [size[0], size[1] + size[2], size[3], size[4], size[5]]
    assert out.gradient_sums.tolist() == pytest.approx([float(each) for each in wanted], rel=1e-6)
    twice = out + out
    assert twice.token_sums.sum() == 12 and torch.equal(twice.gradient_sums, 2 * out.gradient_sums)


def test_neither_chunks_nor_a_factor_change_the_sums(chunks) -> None:
    x = Inputs()
    whole = x.full(Objective("dft"))
    chunks(x, 4, 3)
    parts = x.loss(Objective("dft"), factor=0.25)
    assert torch.equal(parts.token_sums, whole.token_sums)
    torch.testing.assert_close(parts.gradient_sums, whole.gradient_sums)


def test_behind_a_soft_cap_the_gradient_is_that_of_the_capped_logit() -> None:
    x = Inputs()
    capped = x.loss(Objective("dft"), softcap=2.0)
    wanted = x.full(Objective("dft"), lambda z: 2 * torch.tanh(z / 2))
    torch.testing.assert_close(capped.gradient_sums, wanted.gradient_sums)


def test_a_bucket_has_its_lower_edge() -> None:
    nll = torch.tensor([-math.log(edge) for edge in EDGES] + [100.0, 0.0], dtype=torch.float64)
    tokens, size = sums_by_bucket(nll, torch.arange(1.0, 7.0))
    assert tokens.tolist() == [1, 1, 1, 1, 2] and size.tolist() == [5, 1, 2, 3, 4 + 6]
    assert BUCKETS[0] == "p_0.00_to_0.01" and BUCKETS[-1] == "p_0.90_to_1.00"


def test_shares_of_no_gradient_are_0() -> None:
    found = shares([1, 0, 0, 0, 3], [0.0] * 5)
    assert found["token_share/p_0.90_to_1.00"] == 0.75
    assert found["gradient_share/p_0.90_to_1.00"] == 0 and len(found) == 10


@pytest.mark.parametrize("name", [n for n in names() if Objective(n).is_weighted])
def test_of_a_weighted_objective_the_curve_is_its_weight(name: str) -> None:
    objective = Objective(name)
    for others in OTHERS:
        p = torch.tensor(POINTS, dtype=torch.float64)
        rest = (1 - p) / others
        entropy = -p * p.log() - others * rest * rest.log()
        wanted = objective.weight(torch, p, p.log(), entropy).double()
        torch.testing.assert_close(weights(objective, POINTS, others), wanted, rtol=1e-6, atol=1e-6)


def test_the_curve_of_otr_is_that_of_its_expectation() -> None:
    """At kappa 1 it is DFT's times (1 - beta); else it also depends on the other tokens."""
    plain = Objective(temperature=1.0)
    torch.testing.assert_close(weights(plain, POINTS), 1.1 * weights(Objective("dft"), POINTS))
    assert not depends_on_others(plain) and depends_on_others(Objective())
    beta, p, q = -0.1, 0.3, 0.3 ** (1 / 1.3)
    q /= q + 0.7 ** (1 / 1.3)
    wanted = (1 - beta) * q + beta * (q - p) / (1 - p)
    assert float(weights(Objective(), [p], 1)) == pytest.approx(wanted, rel=1e-6)


def test_a_probability_of_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"probabilities are \[1.0\]: use numbers above 0"):
        weights(Objective("sft"), [1.0])
