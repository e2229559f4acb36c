"""`linear_token_loss` rounds no worse than full logits; chunk and tile sizes change nothing."""

import pytest
import torch
from torch import Tensor

from otr import IGNORE_INDEX, Objective, token_loss
from otr.loss.draws import draw_seed
from otr.loss.functional import _plain
from otr.loss.rows import _misses, loss_and_gradient_
from tests.otr.loss import oracle
from tests.otr.loss.losses import MANY, SFT, Inputs, every_objective
from tests.otr.loss.oracle import generator


class Recorder:
    """Records the misses drawn (-1 for a hit) and the figures of each chunk or tile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.misses: list[Tensor] = []
        self.figures: list[Tensor] = []
        monkeypatch.setattr("otr.loss.rows._misses", self._misses)
        monkeypatch.setattr("otr.loss.functional.loss_and_gradient_", self._rows)

    def _misses(self, rows, q_RV, hit_RK, objective) -> tuple[Tensor, Tensor]:
        row_M, index_M = _misses(rows, q_RV, hit_RK, objective)
        missed_RK = torch.ones(len(q_RV), objective.num_samples, dtype=torch.bool)
        if hit_RK is not None:
            missed_RK &= ~hit_RK
        token_RK = torch.full(missed_RK.shape, -1)
        token_RK[missed_RK] = index_M - row_M * q_RV.shape[1]
        self.misses.append(token_RK)
        return row_M, index_M

    def _rows(self, *args) -> Tensor:
        self.figures.append(loss_and_gradient_(*args))
        return self.figures[-1]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


# Allowed rounding steps: float32 sums in another order (of up to 256 draws); bfloat16 products.
ROUNDINGS = {torch.float32: 16, torch.bfloat16: 2}


@pytest.mark.parametrize("objective", MANY.values(), ids=MANY)
@pytest.mark.parametrize("vocabulary", [7, 1000, 151936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_exact_than_full_logits(dtype, vocabulary, objective, chunks, recorder) -> None:
    """|ours - truth| <= |naive - truth| + tol: the rule of apple/ml-cross-entropy."""
    x = Inputs(v=vocabulary, dtype=dtype)
    chunks(x, 4, 3)
    drawn = draws_in_common(x, objective, recorder)
    z = x.hidden.detach().double() @ x.weight.detach().double().T
    terms = oracle.terms(z, x.target, objective, drawn)
    scored = (x.target != IGNORE_INDEX).nonzero()[:, 0]
    hidden, weight = x.hidden.detach().double(), x.weight.detach().double()
    loss, dz = oracle.losses(z, x.target, objective, terms), oracle.gradient(z, terms)
    truth = loss[scored], dz @ weight, dz.T @ hidden
    loss, dz = oracle.magnitude(z, terms)
    sizes = loss[scored], dz @ weight.abs(), dz.T @ hidden.abs()

    recorder.figures.clear()
    gradients = x.gradients(x.loss(objective).loss_sum)
    ours = torch.cat(recorder.figures, 1)[0], *gradients
    rows = (x.hidden @ x.weight.T)[scored], x.target[scored]
    naive_loss = _plain(*rows, objective, draw_seed(generator()), scored)[0]
    naive = naive_loss, *x.gradients(naive_loss.sum())
    for got, other, exact, size in zip(ours, naive, truth, sizes, strict=True):
        worse = (got.double() - exact).abs() - (other.double() - exact).abs()
        assert (worse <= ROUNDINGS[dtype] * torch.finfo(dtype).eps * size).all()


def draws_in_common(x: Inputs, objective: Objective, recorder: Recorder) -> oracle.Draws:
    """Return the oracle's draws; ignore a position for which the loss drew other tokens.

    Rounding can change a draw at the border of two tokens; that happens to at most one position.
    """
    drawn = oracle.draws(x.hidden @ x.weight.T, x.target, objective)
    scored = (x.target != IGNORE_INDEX).nonzero()[:, 0]
    x.loss(objective)
    same = torch.ones(len(scored), dtype=torch.bool)
    if objective.draws_hits:
        same &= torch.cat(recorder.figures, 1)[2] == drawn.hit_TK[scored].float().mean(1)
    if objective.draws_misses:
        same &= (torch.cat(recorder.misses) == missed(drawn, scored, objective)).all(1)
    assert (~same).sum() <= 1
    x.target[scored[~same]] = IGNORE_INDEX
    return drawn


def missed(drawn: oracle.Draws, scored: Tensor, objective: Objective) -> Tensor:
    """Return the tokens drawn, -1 for a hit."""
    token_TK = drawn.miss_TK[scored]
    return token_TK.masked_fill(drawn.hit_TK[scored], -1) if objective.draws_hits else token_TK


@pytest.mark.parametrize("autocast", [False, True])
def test_many_chunks_lose_no_bits_of_a_bf16_weight_gradient(autocast: bool, chunks) -> None:
    """256 terms of one sign: a bfloat16 sum stops growing once terms are below half a step."""
    x = Inputs(t=1024, v=32, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.no_grad():
        x.hidden.abs_()
    chunks(x, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = x.gradients(x.loss(SFT).loss_sum)[1].double()
        naive = x.gradients(x.full(SFT).loss_sum)[1].double()
    hidden, weight = (i.detach().bfloat16().double().requires_grad_() for i in (x.hidden, x.weight))
    loss = token_loss(hidden @ weight.T, x.target, SFT).loss_sum
    truth = torch.autograd.grad(loss, weight)[0]

    in_bf16 = torch.zeros_like(weight, dtype=torch.bfloat16)
    for start in range(0, 1024, 4):
        logits = (hidden[start : start + 4] @ weight.T).detach().requires_grad_()
        part = token_loss(logits, x.target[start : start + 4], SFT).loss_sum
        slope = torch.autograd.grad(part, logits)[0]
        in_bf16 += (slope.T @ hidden[start : start + 4]).bfloat16()

    def error(got: Tensor) -> float:
        return ((got - truth).norm() / truth.norm()).item()

    assert error(ours) < 1.2 * error(naive) < 0.01 < error(in_bf16)


@every_objective
def test_chunk_and_tile_sizes_change_nothing(objective: Objective, chunks, recorder) -> None:
    x = Inputs(t=37)
    whole = x.full(objective)
    wanted = x.gradients(whole.loss_sum)
    drawn = []
    for chunk, tile in ((1, 1), (7, 3), (29, 2), (64, 64)):
        chunks(x, chunk, tile)
        recorder.misses.clear()
        out = x.loss(objective)
        for name in ("loss_sum", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
            torch.testing.assert_close(getattr(out, name), getattr(whole, name))
        assert out.num_tokens == 29
        torch.testing.assert_close(x.gradients(out.loss_sum), wanted, rtol=1e-6, atol=1e-9)
        drawn.append(torch.cat(recorder.misses) if recorder.misses else torch.empty(0, 0))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert drawn[0].shape == ((29, objective.num_samples) if objective.draws_misses else (0, 0))


def test_draws_agree_in_all_but_1_in_10_000(chunks, recorder) -> None:
    """Compare chunk sizes, and float32 with float64 on the same logits."""
    x, o = Inputs(t=160, v=32000, d=64, dtype=torch.float32), Objective()
    made = []
    for chunk, tile in ((5, 2), (37, 16)):
        chunks(x, chunk, tile)
        recorder.misses.clear(), recorder.figures.clear()
        x.loss(o)
        made.append((torch.cat(recorder.figures, 1)[2], torch.cat(recorder.misses)))
    drawn = oracle.draws(x.hidden @ x.weight.T, x.target, o)
    scored = x.target != IGNORE_INDEX
    made.append((drawn.hit_TK[scored].float().mean(1), missed(drawn, scored.nonzero()[:, 0], o)))
    for hits, misses in made[1:]:
        assert (misses != made[0][1]).double().mean() < 1e-4
        assert (hits - made[0][0]).abs().double().mean() < 1e-4
