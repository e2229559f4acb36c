"""The loss against its definition in float64, and the properties that a user relies on."""

import math

import pytest
import torch

from otr import IGNORE_INDEX, Objective, linear_token_loss, token_loss
from otr.draws import uniforms

SFT, DFT = Objective("sft"), Objective("dft")


def rows(num: int, vocabulary: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, vocabulary, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(vocabulary, (num,), generator=generator)


def gradient(logits: torch.Tensor, target: torch.Tensor, objective: Objective, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    loss = token_loss(logits, target, objective, generator=generator).loss_sum
    return torch.autograd.grad(loss, logits)[0]


def expected_gradient(logits: torch.Tensor, target: torch.Tensor, o: Objective) -> torch.Tensor:
    """By the definition: a sum over every token that could be drawn."""
    p = torch.softmax(logits.detach(), -1)
    q = torch.softmax(logits.detach() / o.temperature, -1)
    total = torch.zeros_like(p)
    for t in range(len(p)):
        for a in range(p.shape[1]):
            reward = o.reward_scale * (1.0 if a == target[t] else o.mismatch_reward)
            e_a = torch.zeros_like(p[t])
            e_a[a] = 1
            total[t] += q[t, a] * reward * (p[t] - e_a)
    return total


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0, 0.5, 1.0])
def test_expected_otr_is_the_sum_over_the_vocabulary(kappa: float, beta: float) -> None:
    logits, target = rows(5, 11)
    objective = Objective(
        mismatch_reward=beta, temperature=kappa, reward_scale=2.0, estimator="expected"
    )
    torch.testing.assert_close(
        gradient(logits, target, objective), expected_gradient(logits, target, objective)
    )


@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0])
@pytest.mark.parametrize("num_samples", [1, 7, 64])
def test_sampled_otr_is_unbiased(beta: float, num_samples: int) -> None:
    logits, target = rows(4, 9)
    objective = Objective(num_samples=num_samples, mismatch_reward=beta)
    draws = torch.stack([gradient(logits, target, objective, seed) for seed in range(600)])
    error = draws.mean(0) - expected_gradient(logits, target, objective)
    spread = draws.std(0) / math.sqrt(len(draws))
    assert (error.abs() <= 4.5 * spread + 1e-12).all()


def test_variance_falls_as_one_over_k() -> None:
    logits, target = rows(4, 9)
    variance = [
        torch.stack([gradient(logits, target, Objective(num_samples=k), s) for s in range(400)])
        .var(0)
        .sum()
        for k in (1, 16)
    ]
    assert 12 < variance[0] / variance[1] < 21


def test_sft_and_dft_gradients() -> None:
    logits, target = rows(6, 13)
    p = torch.softmax(logits.detach(), -1)
    sft = p - torch.nn.functional.one_hot(target, 13)
    torch.testing.assert_close(gradient(logits, target, SFT), sft)
    p_y = p.gather(1, target[:, None])
    torch.testing.assert_close(gradient(logits, target, DFT), p_y * sft)


def test_at_kappa_1_the_expectation_is_a_multiple_of_dft() -> None:
    logits, target = rows(6, 13)
    objective = Objective(temperature=1.0, mismatch_reward=-0.5, estimator="expected")
    otr, dft = gradient(logits, target, objective), gradient(logits, target, DFT)
    torch.testing.assert_close(otr, 1.5 * dft)


@pytest.mark.parametrize("objective", [SFT, DFT, Objective(), Objective(estimator="expected")])
def test_chunks_change_nothing(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(37, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(29, 8, dtype=torch.float64, requires_grad=True)
    target = torch.randint(29, (37,))
    target[[0, 5, 36]] = IGNORE_INDEX
    generator = torch.Generator()
    whole = token_loss(hidden @ weight.T, target, objective, generator=generator.manual_seed(3))
    wanted = torch.autograd.grad(whole.loss_sum, (hidden, weight))
    for chunk_rows in (1, 7, 64):
        monkeypatch.setattr("otr.loss._CHUNK_BYTES", 4 * 29 * chunk_rows)
        out = linear_token_loss(
            hidden, weight, target, objective, generator=generator.manual_seed(3)
        )
        for name in ("loss_sum", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
            torch.testing.assert_close(getattr(out, name), getattr(whole, name))
        assert out.num_tokens == 34
        got = torch.autograd.grad(out.loss_sum, (hidden, weight))
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


def test_draws_follow_the_position_not_the_batch() -> None:
    logits, target = rows(8, 50)
    whole = gradient(logits, target, Objective(num_samples=5), seed=4)
    part = token_loss(
        logits[3:],
        target[3:],
        Objective(num_samples=5),
        generator=torch.Generator().manual_seed(4),
        position_T=torch.arange(3, 8),
    )
    torch.testing.assert_close(torch.autograd.grad(part.loss_sum, logits)[0][3:], whole[3:])


def test_uniforms_are_uniform_and_unrelated() -> None:
    draws = uniforms(7, torch.arange(2000), 64, word=0)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 64, 0, 1)
    expected = draws.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)
    for other in (uniforms(7, torch.arange(2000), 64, word=1), draws.roll(1, 0), draws.roll(1, 1)):
        pair = torch.stack([draws.flatten(), other.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1]) < 4.5 / math.sqrt(draws.numel())


def test_no_rows_give_a_zero_that_can_go_backward() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(5, 4, requires_grad=True)
    for target in (torch.full((3,), IGNORE_INDEX), torch.empty(0, dtype=torch.int64)):
        out = linear_token_loss(hidden[: len(target)], weight, target, Objective())
        out.loss_sum.backward()
        assert out.loss_sum == 0 and out.num_tokens == 0
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("objective", [SFT, DFT, Objective(), Objective(estimator="expected")])
def test_extreme_logits_stay_finite(objective: Objective) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, -math.inf, 1.0]], requires_grad=True)
    out = token_loss(logits, torch.tensor([0, 2]), objective)
    out.loss_sum.backward()
    assert torch.isfinite(out.loss_sum) and torch.isfinite(out.entropy_sum)
    assert torch.isfinite(logits.grad).all()
    one = torch.zeros(2, 1, requires_grad=True)
    token_loss(one, torch.zeros(2, dtype=torch.int64), objective).loss_sum.backward()
    assert one.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_samples": 0}, "num_samples .K. is 0"),
        ({"num_samples": 2.0}, "num_samples"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"name": "ppo"}, "'ppo'"),
        ({"estimator": "exact"}, "'exact'"),
        ({"mismatch_reward": math.nan}, "mismatch_reward"),
    ],
)
def test_bad_objectives(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(**change)


def test_bad_arguments() -> None:
    logits, target = rows(4, 9)
    with pytest.raises(ValueError, match="target 9 in row 2"):
        token_loss(logits, torch.tensor([0, 1, 9, 2]), SFT)
    with pytest.raises(ValueError, match=r"target is \(3,\)"):
        token_loss(logits, target[:3], SFT)
    with pytest.raises(TypeError, match="float32"):
        token_loss(logits, target.float(), SFT)
    with pytest.raises(ValueError, match="same D"):
        linear_token_loss(torch.zeros(4, 3), torch.zeros(9, 2), target, SFT)
