"""The losses equal their definitions in float64.

Common behavior of `token_loss` and `linear_token_loss` is tested on both: with the identity matrix
as weight, the hidden states are the logits.
"""

import math

import pytest
import torch
from torch import Tensor

from otr import IGNORE_INDEX, Objective
from otr.loss.functional import _plain
from tests.otr.loss import oracle
from tests.otr.loss.losses import (
    DFT,
    EXACT,
    SAMPLED,
    SFT,
    both,
    by_rows,
    by_token_loss,
    every_count,
    every_objective,
    gradient,
    rows,
)
from tests.otr.loss.oracle import generator


def assert_equals_the_oracle(by, objective: Objective) -> None:
    logits, target = rows(5, 11)
    drawn = oracle.draws(logits, target, objective)
    terms = oracle.terms(logits, target, objective, drawn)
    (loss, nll, hit, entropy, size), dz = by(logits, target, objective)
    torch.testing.assert_close(loss, oracle.losses(logits, target, objective, terms), **EXACT)
    torch.testing.assert_close(dz, oracle.gradient(logits, terms), **EXACT)
    torch.testing.assert_close(nll, oracle.loss(logits, oracle.terms(logits, target, SFT)), **EXACT)
    torch.testing.assert_close(size, dz.gather(1, target[:, None])[:, 0].abs(), **EXACT)
    p = torch.softmax(logits.detach(), -1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1), **EXACT)
    kappa = objective.kappa if objective.name == "otr" else 1.0
    q_y = torch.softmax(logits.detach() / kappa, -1).gather(1, target[:, None])[:, 0]
    sampled = objective.name == "otr" and objective.estimator == "sampled"
    torch.testing.assert_close(hit, drawn.hit_TK.double().mean(1) if sampled else q_y, **EXACT)


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0, 0.5, 1.0])
@every_count
@pytest.mark.parametrize("by", [by_token_loss, by_rows])
def test_otr_is_the_sum_over_its_draws(by, estimator, num_samples, beta, kappa) -> None:
    assert_equals_the_oracle(by, Objective("otr", num_samples, beta, 2.0, kappa, estimator))


@pytest.mark.parametrize("by", [by_token_loss, by_rows])
@every_objective
def test_every_objective_is_its_definition(by, objective: Objective) -> None:
    assert_equals_the_oracle(by, objective)


@both
def test_values_computed_by_hand(function) -> None:
    """p = (1/4, 3/4) and the target is the first token: p - e_y = (-3/4, 3/4)."""
    for objective, loss, slope in (
        (SFT, math.log(4), 0.75),
        (DFT, math.log(4) / 4, 0.75 / 4),
        # q = p: rewards 1 with 1/4 and -1/2 with 3/4
        (
            Objective(mismatch_reward=-0.5, temperature=1.0, estimator="expected"),
            math.log(4) / 4 - 3 / 8 * math.log(4 / 3),
            1.5 * 0.75 / 4,
        ),
    ):
        logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
        out = function(logits, torch.tensor([0]), objective)
        out.loss_sum.backward()
        assert out.loss_sum.item() == pytest.approx(loss, rel=1e-6)
        assert logits.grad[0].tolist() == pytest.approx([-slope, slope], rel=1e-6)


@every_objective
@both
def test_sums_are_over_the_scored_positions(function, objective: Objective) -> None:
    logits, target = rows(6, 11)
    target[[0, 4]] = IGNORE_INDEX
    out = function(logits, target, objective, generator=generator())
    drawn = oracle.draws(logits, target, objective)
    terms = oracle.terms(logits, target, objective, drawn)
    assert out.loss_sum.dtype == torch.float32 and out.num_tokens == 4
    losses = oracle.losses(logits, target, objective, terms)
    assert out.loss_sum.item() == pytest.approx(losses.sum().item(), rel=1e-6)
    beta, hits = objective.mismatch_reward, out.hit_sum.item()
    assert out.reward_sum.item() == pytest.approx(hits + beta * (4 - hits), rel=1e-6)
    got = torch.autograd.grad(out.loss_sum, logits)[0]
    assert not got[[0, 4]].any()
    torch.testing.assert_close(got, oracle.gradient(logits, terms), **EXACT)


@pytest.mark.parametrize("objective", [SFT, SAMPLED], ids=["sft", "sampled"])
def test_gradcheck(objective: Objective) -> None:
    logits, target = rows(4, 9)

    def loss(logits: Tensor) -> Tensor:
        return _plain(logits, target, objective, 5, torch.arange(4))[0].sum()

    assert torch.autograd.gradcheck(loss, logits)


@every_objective
def test_finite_differences_with_draws_and_policy_held(objective: Objective) -> None:
    logits, target = rows(3, 7)
    drawn = oracle.draws(logits, target, objective)
    held = oracle.terms(logits, target, objective, drawn)
    got = gradient(logits, target, objective)
    step = 1e-5
    for index in torch.cartesian_prod(torch.arange(3), torch.arange(7)).tolist():
        move = torch.zeros_like(logits)
        move[tuple(index)] = step
        up, down = (oracle.loss(logits.detach() + sign * move, held).sum() for sign in (1, -1))
        assert got[tuple(index)].item() == pytest.approx((up - down).item() / (2 * step), abs=1e-9)


def test_at_kappa_1_and_beta_1_the_expectation_is_zero() -> None:
    logits, target = rows(4, 9)
    nothing = Objective("otr", 8, 1.0, 1.0, 1.0, "expected")
    assert gradient(logits, target, nothing).abs().max() < 1e-15


def test_at_kappa_1_the_expectation_is_a_multiple_of_dft() -> None:
    logits, target = rows(6, 13)
    objective = Objective("otr", 1, -0.5, 2.0, 1.0, "expected")
    otr, dft = gradient(logits, target, objective), gradient(logits, target, DFT)
    torch.testing.assert_close(otr, 2.0 * 1.5 * dft, rtol=1e-12, atol=1e-14)


@every_objective
@both
def test_a_constant_added_to_the_logits_changes_nothing(function, objective: Objective) -> None:
    logits, target = rows(5, 11)
    shift = torch.tensor([[300.0], [-70.0], [1.5], [0.0], [-1e4]], dtype=torch.float64)
    made = []
    for moved in (logits, logits + shift):
        loss = function(moved, target, objective, generator=generator()).loss_sum
        made.append((loss, torch.autograd.grad(loss, logits)[0]))
    (loss, dz), (loss_moved, dz_moved) = made
    torch.testing.assert_close(loss_moved, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(dz_moved, dz, rtol=1e-10, atol=1e-11)
