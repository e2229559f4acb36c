"""The loss against its definition in float64, and the properties that a user relies on.

What `token_loss` and `linear_token_loss` share is tested on both: with the unit matrix for a weight
the hidden states of the second are the logits.
"""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss, token_loss
from otr.draws import draw_seed, draw_tokens, uniforms
from otr.loss import _plain
from otr.rows import rows_
from tests.numerics import oracle
from tests.numerics.oracle import generator

SFT, DFT = Objective("sft"), Objective("dft")
SAMPLED, HALF = Objective(num_samples=7), Objective(num_samples=7, estimator="half")
EXPECTED = Objective(estimator="expected")
OBJECTIVES = {"sft": SFT, "dft": DFT, "sampled": SAMPLED, "half": HALF, "expected": EXPECTED}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
every_count = pytest.mark.parametrize(
    ("estimator", "num_samples"),
    [("expected", 1), *((e, k) for e in ("sampled", "half") for k in (1, 7, 256))],
)


def through_linear(logits: Tensor, target: Tensor, objective: Objective, **more) -> LossOutput:
    vocabulary = logits.shape[-1]
    weight = torch.eye(vocabulary, dtype=logits.dtype)
    return linear_token_loss(logits, weight, target, objective, **more)


class Elsewhere:
    """A generator of a device that this machine need not have."""

    device = torch.device("cuda:1")


both = pytest.mark.parametrize("function", [token_loss, through_linear])


def rows(num: int, vocabulary: int, seed: int = 0, spread: float = 2) -> tuple[Tensor, Tensor]:
    numbers = generator(seed)
    logits = spread * torch.randn(num, vocabulary, dtype=torch.float64, generator=numbers)
    return logits.requires_grad_(), torch.randint(vocabulary, (num,), generator=numbers)


def gradient(logits: Tensor, target: Tensor, objective: Objective, seed: int = 0) -> Tensor:
    loss = token_loss(logits, target, objective, generator=generator(seed)).loss_sum
    return torch.autograd.grad(loss, logits)[0]


def by_rows(logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """Figures and gradient as `linear_token_loss` forms them."""
    z, position = logits.detach().clone(), torch.arange(len(logits))
    return rows_(z, target, position, objective, draw_seed(generator())), z


def by_token_loss(logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    seed, position = draw_seed(generator()), torch.arange(len(logits))
    figures = _plain(logits, target, objective, seed, position)
    return figures.detach(), gradient(logits, target, objective)


def equals_the_oracle(by, objective: Objective) -> None:
    logits, target = rows(5, 11)
    drawn = oracle.draws(logits, target, objective)
    terms = oracle.terms(logits, target, objective, drawn)
    (loss, nll, hit, entropy), dz = by(logits, target, objective)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, oracle.loss(logits, terms), **exact)
    torch.testing.assert_close(dz, oracle.gradient(logits, terms), **exact)
    torch.testing.assert_close(nll, oracle.loss(logits, oracle.terms(logits, target, SFT)), **exact)
    p = torch.softmax(logits.detach(), -1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1), **exact)
    q_y = torch.softmax(logits.detach() / objective.kappa, -1).gather(1, target[:, None])[:, 0]
    sampled = objective.name == "otr" and objective.estimator == "sampled"
    torch.testing.assert_close(hit, drawn.hit_TK.double().mean(1) if sampled else q_y, **exact)


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0, 0.5, 1.0])
@every_count
@pytest.mark.parametrize("by", [by_token_loss, by_rows])
def test_otr_is_the_sum_over_its_draws(by, estimator, num_samples, beta, kappa) -> None:
    equals_the_oracle(by, Objective("otr", num_samples, beta, 2.0, kappa, estimator))


@pytest.mark.parametrize("by", [by_token_loss, by_rows])
@every_objective
def test_every_objective_is_its_definition(by, objective: Objective) -> None:
    equals_the_oracle(by, objective)


@both
def test_worked_by_hand(function) -> None:
    """p = (1/4, 3/4) and the target the first: p - e_y = (-3/4, 3/4)."""
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
def test_sums_are_over_the_scored_rows(function, objective: Objective) -> None:
    logits, target = rows(6, 11)
    target[[0, 4]] = IGNORE_INDEX
    out = function(logits, target, objective, generator=generator())
    drawn = oracle.draws(logits, target, objective)
    terms = oracle.terms(logits, target, objective, drawn)
    assert out.loss_sum.dtype == torch.float32 and out.num_tokens == 4
    assert out.loss_sum.item() == pytest.approx(oracle.loss(logits, terms).sum().item(), rel=1e-6)
    beta, hits = objective.mismatch_reward, out.hit_sum.item()
    assert out.reward_sum.item() == pytest.approx(hits + beta * (4 - hits), rel=1e-6)
    got = torch.autograd.grad(out.loss_sum, logits)[0]
    assert not got[[0, 4]].any()
    torch.testing.assert_close(got, oracle.gradient(logits, terms), rtol=1e-12, atol=1e-12)


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
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(7)).tolist():
        move = torch.zeros_like(logits)
        move[tuple(place)] = step
        up, down = (oracle.loss(logits.detach() + sign * move, held).sum() for sign in (1, -1))
        assert got[tuple(place)].item() == pytest.approx((up - down).item() / (2 * step), abs=1e-9)


def many_gradients(logits_V: Tensor, target: int, objective: Objective, count: int) -> Tensor:
    """[count, V]: independent draws of the gradient of one row."""
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
def test_unbiased(estimator: str, num_samples: int, beta: float, kappa: float) -> None:
    objective = Objective("otr", num_samples, beta, 1.0, kappa, estimator)
    (logits, *_), target = rows(1, 70, seed=1, spread=0.5)[0].detach(), 3
    logits[target] = 2.5  # hits and misses are both many
    made = many_gradients(logits, target, objective, 40_000 // num_samples)
    error = made.mean(0) - expectation(logits, target, objective)
    standard_error = made.std(0) / math.sqrt(len(made))
    assert (error.abs() <= 4 * standard_error + 1e-12).all()


def test_at_kappa_1_and_beta_1_the_expectation_is_zero() -> None:
    logits, target = rows(4, 9)
    nothing = Objective("otr", 8, 1.0, 1.0, 1.0, "expected")
    assert gradient(logits, target, nothing).abs().max() < 1e-15


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


def test_at_kappa_1_the_expectation_is_a_multiple_of_dft() -> None:
    logits, target = rows(6, 13)
    objective = Objective("otr", 1, -0.5, 2.0, 1.0, "expected")
    otr, dft = gradient(logits, target, objective), gradient(logits, target, DFT)
    torch.testing.assert_close(otr, 2.0 * 1.5 * dft, rtol=1e-12, atol=1e-14)


@every_objective
@both
def test_a_shift_of_a_rows_logits_changes_nothing(function, objective: Objective) -> None:
    logits, target = rows(5, 11)
    shift = torch.tensor([[300.0], [-70.0], [1.5], [0.0], [-1e4]], dtype=torch.float64)
    made = []
    for moved in (logits, logits + shift):
        loss = function(moved, target, objective, generator=generator()).loss_sum
        made.append((loss, torch.autograd.grad(loss, logits)[0]))
    (loss, dz), (loss_moved, dz_moved) = made
    torch.testing.assert_close(loss_moved, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(dz_moved, dz, rtol=1e-10, atol=1e-11)


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
    draws = uniforms(7, torch.arange(2000), 64, word=0)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 64, 0, 1)
    expected = draws.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)
    for other in (uniforms(7, torch.arange(2000), 64, word=1), draws.roll(1, 0), draws.roll(1, 1)):
        pair = torch.stack([draws.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / math.sqrt(draws.numel())


def test_tokens_are_drawn_by_weight_and_never_one_of_weight_0() -> None:
    weight = torch.rand(200, generator=generator()) ** 4
    weight[[0, 63, 64, 130, 199]] = 0
    numbers = torch.rand(2, 1, 200_000, generator=generator(1))
    drawn = draw_tokens(weight[None], *numbers)[0]
    counts, expected = drawn.bincount(minlength=200), 200_000 * weight / weight.sum()
    assert not counts[weight == 0].any()
    often = expected > 5
    chi_square = ((counts - expected) ** 2 / expected)[often].sum()
    assert chi_square < often.sum() + 5 * math.sqrt(2 * often.sum())
    edges = draw_tokens(
        weight[None], torch.tensor([[0.0, 1 - 2**-24]]), torch.tensor([[0.0, 1 - 2**-24]])
    )
    assert edges.tolist() == [[1, 198]]


LOGIT = st.sampled_from([0.0, 1.5, -3.0, 1e4, -1e4, -math.inf])


@hypothesis.given(
    st.integers(1, 8).flatmap(
        lambda v: st.lists(
            st.tuples(st.lists(LOGIT, min_size=v, max_size=v), st.integers(0, v - 1)),
            min_size=1,
            max_size=4,
        )
    ),
    st.sampled_from(list(OBJECTIVES.values())),
    st.sampled_from([0.7, 1.3]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_extremes_stay_finite(made: list, objective: Objective, kappa: float, dtype) -> None:
    """Any shape, masked entries, a vocabulary of one; the target itself is never masked."""
    o = Objective(objective.name, 7, temperature=kappa, estimator=objective.estimator)
    logits = torch.tensor([z for z, _ in made])
    target = torch.tensor([y for _, y in made])
    logits[torch.arange(len(made)), target] = logits.gather(1, target[:, None])[:, 0].clamp(
        min=-1e4
    )
    logits = logits.to(dtype).requires_grad_()
    terms = oracle.terms(logits, target, o, oracle.draws(logits, target, o))
    slack = {"rtol": 1e-5, "atol": 1e-5 if dtype != torch.bfloat16 else 1e-2}
    for by in (by_token_loss, by_rows):
        figures, dz = by(logits, target, o)
        assert torch.isfinite(figures).all()
        torch.testing.assert_close(dz.double(), oracle.gradient(logits, terms), **slack)
        torch.testing.assert_close(figures[0].double(), oracle.loss(logits, terms), **slack)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_objective
@both
def test_nan_is_an_error_that_names_the_row(function, objective: Objective, value: float) -> None:
    logits, target = rows(9, 5)
    target[[1, 4]] = IGNORE_INDEX
    bad = logits.detach().clone()
    bad[4] = value  # not scored: not looked at
    assert torch.isfinite(function(bad, target, objective).loss_sum)
    bad[6] = value
    bad[8] = value
    with pytest.raises(FloatingPointError, match="row 6 "):
        function(bad, target, objective)


@every_objective
def test_a_masked_target_is_an_error_that_names_the_row(objective: Objective) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = -math.inf
    assert torch.isfinite(token_loss(logits, torch.tensor([0, 1, 2]), objective).loss_sum)
    with pytest.raises(FloatingPointError, match="row 1 "):
        token_loss(logits, torch.tensor([0, 2, 2]), objective)


@pytest.mark.parametrize("target", [torch.full((3,), IGNORE_INDEX), torch.empty(0).long()])
@every_objective
@both
def test_no_rows_give_a_zero_that_can_go_backward(function, objective, target: Tensor) -> None:
    logits = torch.randn(len(target), 5, requires_grad=True)
    out = function(logits, target, objective)
    out.loss_sum.backward()
    for name in ("loss_sum", "num_tokens", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
        assert getattr(out, name) == 0
    assert logits.grad.shape == logits.shape and not logits.grad.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "ppo"}, "objective name 'ppo': use 'otr', 'sft' or 'dft'"),
        ({"estimator": "exact"}, "estimator 'exact': use 'sampled', 'half' or 'expected'"),
        ({"num_samples": 0}, r"num_samples \(K\) is 0: use an integer >= 1"),
        ({"num_samples": -3}, r"num_samples \(K\) is -3: use an integer"),
        ({"num_samples": 2.0}, r"num_samples \(K\) is 2.0: use an integer"),
        ({"num_samples": True}, r"num_samples \(K\) is True: use an integer"),
        ({"temperature": 0.0}, r"temperature \(kappa\) is 0.0: use a number > 0"),
        ({"temperature": -1.0}, r"temperature \(kappa\) is -1.0: use a number > 0"),
        ({"temperature": math.inf}, r"temperature \(kappa\) is inf"),
        ({"temperature": math.nan}, r"temperature \(kappa\) is nan"),
        ({"mismatch_reward": math.nan}, "mismatch_reward is nan: use a finite number"),
        ({"reward_scale": math.inf}, "reward_scale is inf: use a finite number"),
    ],
)
def test_bad_objectives(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(**change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": torch.tensor([0, 1, 9, 2])}, "target 9 in row 2: use 0 to 8 or -100"),
        ({"target": torch.tensor([-1, 1, 0, 2])}, "target -1 in row 0: use 0 to 8 or -100"),
        ({"target": torch.zeros(3).long()}, r"target is \(3,\): use \[4\]"),
        ({"target": torch.zeros(4, 1).long()}, r"target is \(4, 1\): use \[4\]"),
        ({"target": torch.zeros(4)}, "target is torch.float32: use int64"),
        ({"target": torch.zeros(4).int()}, "target is torch.int32: use int64"),
        ({"position_T": torch.arange(5)}, r"position is \(5,\): use \[4\]"),
        ({"position_T": torch.zeros(4)}, "position is torch.float32: use int64"),
        (
            {"logits": torch.zeros(4, 9).long()},
            r"(logits|hidden) is torch.int64 \(4, 9\): use a flo",
        ),
        (
            {"logits": torch.zeros(2, 2, 9)},
            r"(logits|hidden).* \(2, 2, 9\).*: use (a float matrix|\[T, D])",
        ),
        ({"logits": torch.zeros(9)}, r"(logits|hidden).* \(9,\).*: use (a float matrix|\[T, D])"),
        ({"generator": Elsewhere()}, "generator is on cuda:1: use the CPU or cpu"),
    ],
)
@both
def test_bad_arguments(function, change: dict, words: str) -> None:
    good = {"logits": torch.zeros(4, 9), "target": torch.zeros(4).long()}

    def call(logits: Tensor, target: Tensor, **more) -> LossOutput:
        return function(logits, target, SAMPLED, **more)

    call(**good)
    with pytest.raises((ValueError, TypeError), match=words):
        call(**good | change)


@both
def test_an_objective_by_its_name_alone_is_refused(function) -> None:
    with pytest.raises(TypeError, match=r"objective is 'otr': use an otr.Objective"):
        function(torch.zeros(4, 9), torch.zeros(4).long(), "otr")
