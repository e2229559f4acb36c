"""`linear_token_loss` has the defined gradients, also inside of a model."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss, token_loss
from tests.otr.loss import oracle
from tests.otr.loss.losses import (
    EXACT,
    OBJECTIVES,
    SAMPLED,
    SFT,
    Inputs,
    every_count,
    every_objective,
)
from tests.otr.loss.oracle import generator


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0, 0.5, 1.0])
@every_count
def test_otr_equals_the_oracle(estimator, num_samples, beta, kappa, chunks) -> None:
    assert_equals_the_oracle(Objective("otr", num_samples, beta, 2.0, kappa, estimator), chunks)


@every_objective
def test_every_objective_equals_the_oracle(objective: Objective, chunks) -> None:
    assert_equals_the_oracle(objective, chunks)


def assert_equals_the_oracle(objective: Objective, chunks: Callable[..., None]) -> None:
    x = Inputs()
    chunks(x, 4, 3)
    bias = torch.randn(29, dtype=torch.float64, generator=generator(1)).requires_grad_()
    logits = (x.hidden @ x.weight.T + bias).detach()
    terms = oracle.terms(logits, x.target, objective, oracle.draws(logits, x.target, objective))
    dz = oracle.gradient(logits, terms)
    loss = x.loss(objective, bias=bias).loss_sum
    losses = oracle.losses(logits, x.target, objective, terms)
    assert loss.item() == pytest.approx(losses.sum().item(), rel=1e-6, abs=1e-6)
    wanted = dz @ x.weight, dz.T @ x.hidden, dz.sum(0)
    torch.testing.assert_close(x.gradients(loss, bias), wanted, **EXACT)


@every_objective
def test_finite_differences_with_draws_and_policy_held_constant(objective: Objective) -> None:
    x = Inputs(t=5, v=7, d=3)

    def logits() -> Tensor:
        return x.hidden.detach() @ x.weight.detach().T

    drawn = oracle.draws(logits(), x.target, objective)
    held = oracle.terms(logits(), x.target, objective, drawn)
    step = 1e-5
    for moved, got in zip(
        (x.hidden, x.weight), x.gradients(x.loss(objective).loss_sum), strict=True
    ):
        entries = moved.detach().view(-1)  # shares memory with the tensor that logits() reads
        for i in range(len(entries)):
            original = entries[i].item()
            sums = []
            for sign in (1, -1):
                entries[i] = original + sign * step
                sums.append(oracle.loss(logits(), held).sum().item())
            entries[i] = original
            slope = (sums[0] - sums[1]) / (2 * step)
            assert got.flatten()[i].item() == pytest.approx(slope, abs=1e-8)


@every_objective
def test_bias_scale_and_softcap(objective: Objective, chunks) -> None:
    x = Inputs()
    chunks(x, 4, 3)
    bias = torch.randn(29, dtype=torch.float64, generator=generator(1)).requires_grad_()
    full = x.full(objective, lambda z: 3 * torch.tanh(1.7 * (z + bias) / 3))
    ours = x.loss(objective, bias=bias, logit_scale=1.7, softcap=3.0)
    assert ours.loss_sum.item() == pytest.approx(full.loss_sum.item(), rel=1e-6)
    assert ours.entropy_sum.item() == pytest.approx(full.entropy_sum.item(), rel=1e-6)
    torch.testing.assert_close(
        x.gradients(ours.loss_sum, bias), x.gradients(full.loss_sum, bias), **EXACT
    )


@every_objective
def test_tied_embeddings_get_the_sum_of_both_gradients(objective: Objective, chunks) -> None:
    x = Inputs()
    chunks(x, 4, 3)
    ids = torch.randint(29, (13,), generator=generator(2))

    def gradient(loss: Callable[[Tensor], LossOutput]) -> Tensor:
        hidden = torch.tanh(nn.functional.embedding(ids, x.weight))
        return torch.autograd.grad(loss(hidden).loss_sum, x.weight)[0]

    more = {"generator": generator(), "start_T": oracle.start(x.target)}
    ours = gradient(lambda h: linear_token_loss(h, x.weight, x.target, objective, **more))
    more["generator"] = generator()
    plain = gradient(lambda h: token_loss(h @ x.weight.T, x.target, objective, **more))
    torch.testing.assert_close(ours, plain, **EXACT)


@every_objective
def test_autocast_is_bf16_products_of_float32_weights(objective: Objective, chunks) -> None:
    x = Inputs(dtype=torch.float32)
    chunks(x, 8, 3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = x.loss(objective).loss_sum
    ours = x.gradients(loss)
    assert all(g.dtype == torch.float32 for g in ours)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = x.gradients(x.full(objective).loss_sum)
    y = Inputs(dtype=torch.float32)
    exact = y.gradients(y.full(objective).loss_sum)
    for got, naive, precise in zip(ours, wanted, exact, strict=True):
        torch.testing.assert_close(got, naive, rtol=0.02, atol=0.02 * naive.abs().max().item())
        assert (got - precise).abs().max() > 1e-6  # it did round


def test_an_outer_gradient_scales_the_gradients() -> None:
    x = Inputs(dtype=torch.bfloat16)
    one = x.gradients(x.loss(SFT).loss_sum)
    many = x.gradients(x.loss(SFT).loss_sum * (1 / 3))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(b, (a.float() / 3).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1 / 3, torch.tensor(1 / 3, dtype=torch.float64)])
@every_objective
def test_a_factor_is_that_of_the_loss(objective: Objective, factor, chunks) -> None:
    x = Inputs()
    chunks(x, 4, 3)
    ours, plain = x.loss(objective, factor=factor), x.loss(objective)
    wanted = x.gradients(plain.loss_sum * (1 / 3))
    assert ours.loss_sum.item() == pytest.approx(plain.loss_sum.item() / 3)
    torch.testing.assert_close(x.gradients(ours.loss_sum), wanted, rtol=1e-6, atol=1e-9)
    for name in ("num_tokens", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
        assert getattr(ours, name) == getattr(plain, name)


@every_objective
def test_indices_of_the_scored_positions_change_nothing(objective: Objective) -> None:
    x = Inputs()
    scored = (x.target != IGNORE_INDEX).nonzero()[:, 0]
    ours, plain = x.loss(objective, scored_S=scored), x.loss(objective)
    assert ours.loss_sum == plain.loss_sum and ours.num_tokens == plain.num_tokens
    torch.testing.assert_close(
        x.gradients(ours.loss_sum), x.gradients(plain.loss_sum), rtol=0, atol=0
    )
    with pytest.raises(ValueError, match="target -100 in row 1: use 0 to 28"):
        x.loss(objective, scored_S=torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", ["logit", "target", "masked target"])
@every_objective
def test_what_is_not_checked_makes_loss_and_gradients_nan(objective: Objective, bad: str) -> None:
    x = Inputs()
    good = x.loss(objective, check=False).loss_sum
    assert good == x.loss(objective).loss_sum
    assert all(g.isfinite().all() for g in x.gradients(good))
    bias = torch.zeros(29, dtype=torch.float64)
    if bad == "logit":
        x.hidden.data[2, 0] = math.inf
    elif bad == "target":
        x.target[2] = 29
    else:
        bias[x.target[2]] = -math.inf
    with pytest.raises((ValueError, FloatingPointError), match="row"):
        x.loss(objective, bias=bias)
    out = x.loss(objective, bias=bias, check=False)
    assert out.loss_sum.isnan() and out.nll_sum.isnan()
    of_hidden, of_weight = x.gradients(out.loss_sum)
    assert of_hidden[x.target != IGNORE_INDEX].isnan().all() and of_weight.isnan().all()


def test_a_second_backward_is_an_error() -> None:
    loss = Inputs().loss(SAMPLED).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        loss.backward()


class Net(nn.Module):
    """A body and a tied head."""

    def __init__(self, objective: Objective, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.body = nn.Embedding(29, 8), nn.Linear(8, 8)
        self.objective, self.checkpointed = objective, checkpointed

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        hidden = self.embed(ids)
        if self.checkpointed:
            hidden = checkpoint(lambda h: torch.tanh(self.body(h)), hidden, use_reentrant=False)
        else:
            hidden = torch.tanh(self.body(hidden))
        more = {"generator": generator(), "start_T": oracle.start(target)}
        out = linear_token_loss(hidden * 2, self.embed.weight, target, self.objective, **more)
        return out.loss_sum / out.num_tokens


def loss_and_gradients(net: nn.Module) -> list[Tensor]:
    ids, target = torch.arange(13), Inputs().target
    loss = net(ids, target)
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_gives_the_same(backend: str) -> None:
    compiled = torch.compile(Net(SAMPLED), backend=backend)
    torch.testing.assert_close(loss_and_gradients(compiled), loss_and_gradients(Net(SAMPLED)))


@every_objective
def test_gradient_checkpointing_of_the_body_gives_the_same(objective: Objective) -> None:
    nets = Net(objective, checkpointed=True), Net(objective)
    torch.testing.assert_close(*(loss_and_gradients(net) for net in nets), rtol=0, atol=0)


def test_a_masked_token_gets_no_gradient_and_is_an_error_as_a_target(chunks) -> None:
    x = Inputs(dtype=torch.float32)
    chunks(x, 4, 3)
    x.target[[0, 9]] = torch.tensor([4, 5])
    bias = torch.zeros(29)
    bias[5] = -math.inf
    for objective in OBJECTIVES.values():
        with pytest.raises(FloatingPointError, match="row 9 "):
            x.loss(objective, bias=bias)
    x.target[9] = 6
    for objective in OBJECTIVES.values():
        gradients = x.gradients(x.loss(objective, bias=bias).loss_sum)
        assert all(torch.isfinite(g).all() for g in gradients)
        assert not gradients[1][5].any()
