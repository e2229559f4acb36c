"""`linear_token_loss`: as exact as full logits, in chunks that change nothing, and only the work
that is wanted."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import otr.rows
from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss, token_loss
from otr.draws import draw_seed, draw_tokens, uniforms
from otr.loss import _plain
from otr.rows import rows_
from tests.numerics import oracle
from tests.numerics.oracle import generator
from tests.numerics.test_loss import (
    DFT,
    EXPECTED,
    HALF,
    OBJECTIVES,
    SAMPLED,
    SFT,
    Elsewhere,
    every_count,
    every_objective,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


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
        more = {"generator": generator()} | more
        return linear_token_loss(self.hidden, self.weight, self.target, objective, **more)

    def full(self, objective: Objective, change: Callable = lambda z: z) -> LossOutput:
        """The loss on all logits at once."""
        logits = change(self.hidden @ self.weight.T)
        return token_loss(logits, self.target, objective, generator=generator())

    def gradients(self, loss: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, (self.hidden, self.weight, *more))


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how many rows of logits are in a chunk and in a tile of it."""

    def set_rows(inputs: Inputs, chunk: int, tile: int) -> None:
        size, vocabulary = inputs.weight.element_size(), len(inputs.weight)
        monkeypatch.setattr("otr.linear.CHUNK_BYTES", {"cpu": chunk * vocabulary * size})
        monkeypatch.setattr("otr.rows.TILE_BYTES", tile * vocabulary * max(4, size))

    return set_rows


class Seen:
    """What passed by inside: uniforms, tokens drawn, figures; each a chunk or a tile at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uniforms: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
        self.misses: list[Tensor] = []
        self.figures: list[Tensor] = []
        monkeypatch.setattr("otr.rows.uniforms", self._uniforms)
        monkeypatch.setattr("otr.rows.draw_tokens", self._draw_tokens)
        monkeypatch.setattr("otr.loss.rows_", self._rows)

    def _uniforms(self, *args, word: int) -> Tensor:
        self.uniforms[word].append(uniforms(*args, word=word))
        return self.uniforms[word][-1]

    def _draw_tokens(self, *args) -> Tensor:
        self.misses.append(draw_tokens(*args))
        return self.misses[-1]

    def _rows(self, *args) -> Tensor:
        self.figures.append(rows_(*args))
        return self.figures[-1]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


@pytest.mark.parametrize("kappa", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("beta", [-1.0, -0.1, 0.0, 0.5, 1.0])
@every_count
def test_otr_equals_the_oracle(estimator, num_samples, beta, kappa, chunks) -> None:
    equals_the_oracle(Objective("otr", num_samples, beta, 2.0, kappa, estimator), chunks)


@every_objective
def test_every_objective_equals_the_oracle(objective: Objective, chunks) -> None:
    equals_the_oracle(objective, chunks)


def equals_the_oracle(objective: Objective, chunks: Callable[..., None]) -> None:
    x = Inputs()
    chunks(x, 4, 3)
    bias = torch.randn(29, dtype=torch.float64, generator=generator(1)).requires_grad_()
    logits = (x.hidden @ x.weight.T + bias).detach()
    terms = oracle.terms(logits, x.target, objective, oracle.draws(logits, x.target, objective))
    dz = oracle.gradient(logits, terms)
    loss = x.loss(objective, bias=bias).loss_sum
    assert loss.item() == pytest.approx(oracle.loss(logits, terms).sum().item(), rel=1e-6, abs=1e-6)
    wanted = dz @ x.weight, dz.T @ x.hidden, dz.sum(0)
    torch.testing.assert_close(x.gradients(loss, bias), wanted, **EXACT)


@every_objective
def test_finite_differences_with_draws_and_policy_held(objective: Objective) -> None:
    x = Inputs(t=5, v=7, d=3)

    def logits() -> Tensor:
        return x.hidden.detach() @ x.weight.detach().T

    drawn = oracle.draws(logits(), x.target, objective)
    held = oracle.terms(logits(), x.target, objective, drawn)
    step = 1e-5
    for moved, got in zip(
        (x.hidden, x.weight), x.gradients(x.loss(objective).loss_sum), strict=True
    ):
        entries = moved.detach().view(-1)  # shares memory: moves what logits() reads
        for i in range(len(entries)):
            kept = entries[i].item()
            sums = []
            for sign in (1, -1):
                entries[i] = kept + sign * step
                sums.append(oracle.loss(logits(), held).sum().item())
            entries[i] = kept
            slope = (sums[0] - sums[1]) / (2 * step)
            assert got.flatten()[i].item() == pytest.approx(slope, abs=1e-8)


# Of float32 sums in another order, 256 draws one by one among them; of bfloat16 products.
ROUNDINGS = {torch.float32: 16, torch.bfloat16: 2}
MANY = {"sft": SFT, "dft": DFT, "sampled": Objective(), "half": HALF, "expected": EXPECTED}


@pytest.mark.parametrize("objective", MANY.values(), ids=MANY)
@pytest.mark.parametrize("vocabulary", [7, 1000, 151936])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_exact_than_full_logits(dtype, vocabulary, objective, chunks, seen) -> None:
    """|ours - truth| <= |naive - truth| + tol: the rule of apple/ml-cross-entropy."""
    x = Inputs(v=vocabulary, dtype=dtype)
    chunks(x, 4, 3)
    drawn = draws_in_common(x, objective, seen)
    z = x.hidden.detach().double() @ x.weight.detach().double().T
    terms = oracle.terms(z, x.target, objective, drawn)
    scored = (x.target != IGNORE_INDEX).nonzero()[:, 0]
    hidden, weight = x.hidden.detach().double(), x.weight.detach().double()
    loss, dz = oracle.loss(z, terms), oracle.gradient(z, terms)
    truth = loss[scored], dz @ weight, dz.T @ hidden
    loss, dz = oracle.magnitude(z, terms)
    sizes = loss[scored], dz @ weight.abs(), dz.T @ hidden.abs()

    seen.figures.clear()
    gradients = x.gradients(x.loss(objective).loss_sum)
    ours = torch.cat(seen.figures, 1)[0], *gradients
    rows = (x.hidden @ x.weight.T)[scored], x.target[scored]
    naive_loss = _plain(*rows, objective, draw_seed(generator()), scored)[0]
    naive = naive_loss, *x.gradients(naive_loss.sum())
    for got, other, exact, size in zip(ours, naive, truth, sizes, strict=True):
        worse = (got.double() - exact).abs() - (other.double() - exact).abs()
        assert (worse <= ROUNDINGS[dtype] * torch.finfo(dtype).eps * size).all()


def draws_in_common(x: Inputs, objective: Objective, seen: Seen) -> oracle.Draws:
    """Those of the logits of `x`; a row for which the loss drew otherwise is ignored from here on.

    It may at a border of rounding: at most one of these few rows does.
    """
    drawn = oracle.draws(x.hidden @ x.weight.T, x.target, objective)
    scored = (x.target != IGNORE_INDEX).nonzero()[:, 0]
    x.loss(objective)
    same = torch.ones(len(scored), dtype=torch.bool)
    if objective.draws_hits:
        same &= torch.cat(seen.figures, 1)[2] == drawn.hit_TK[scored].float().mean(1)
    if objective.draws_misses:
        same &= (torch.cat(seen.misses) == drawn.miss_TK[scored]).all(1)
    assert (~same).sum() <= 1
    x.target[scored[~same]] = IGNORE_INDEX
    return drawn


@pytest.mark.parametrize("autocast", [False, True])
def test_many_chunks_lose_no_bits_of_a_bf16_weight_gradient(autocast: bool, chunks) -> None:
    """256 terms of one sign: a sum in bfloat16 stops growing once a term is below half a step."""
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
def test_chunks_and_tiles_change_nothing(objective: Objective, chunks, seen) -> None:
    x = Inputs(t=37)
    whole = x.full(objective)
    wanted = x.gradients(whole.loss_sum)
    words = []
    for chunk, tile in ((1, 1), (7, 3), (29, 2), (64, 64)):
        chunks(x, chunk, tile)
        out = x.loss(objective)
        for name in ("loss_sum", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
            torch.testing.assert_close(getattr(out, name), getattr(whole, name))
        assert out.num_tokens == 29
        torch.testing.assert_close(x.gradients(out.loss_sum), wanted, rtol=1e-6, atol=1e-9)
        words.append([torch.cat(word) for word in seen.uniforms.values() if word])
        for word in seen.uniforms.values():
            word.clear()
    for other in words[1:]:
        assert all(torch.equal(a, b) for a, b in zip(words[0], other, strict=True))
    draws = objective.draws_hits + 2 * objective.draws_misses
    assert sum(word.numel() for word in words[0]) == 29 * objective.num_samples * draws


def test_draws_agree_in_all_but_1_in_10_000(chunks, seen) -> None:
    """Between chunk sizes, and between float32 and float64 on the same logits."""
    x, o = Inputs(t=160, v=32000, d=64, dtype=torch.float32), Objective()
    made = []
    for chunk, tile in ((5, 2), (37, 16)):
        chunks(x, chunk, tile)
        seen.misses.clear(), seen.figures.clear()
        x.loss(o)
        made.append((torch.cat(seen.figures, 1)[2], torch.cat(seen.misses)))
    drawn = oracle.draws(x.hidden @ x.weight.T, x.target, o)
    scored = x.target != IGNORE_INDEX
    made.append((drawn.hit_TK[scored].float().mean(1), drawn.miss_TK[scored]))
    for hits, misses in made[1:]:
        assert (misses != made[0][1]).double().mean() < 1e-4
        assert (hits - made[0][0]).abs().double().mean() < 1e-4


class Operations(TorchDispatchMode):
    """The operations that run, and the shapes and sizes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "matmul"):
            self.products.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("objective", MANY.values(), ids=MANY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_all_logits(dtype, objective: Objective, chunks) -> None:
    """Nothing is larger than a chunk of logits or the weight in float32."""
    x = Inputs(t=2048, v=4096, d=16, dtype=dtype)
    chunks(x, 128, 8)
    with Operations() as ran:
        x.loss(objective).loss_sum.backward()
    limit = max(128 * 4096 * x.weight.element_size(), 4 * x.weight.numel())
    assert 0 < ran.largest <= limit < 2048 * 4096 * x.weight.element_size() / 8


def test_draws_from_a_small_vocabulary_need_no_large_scratch() -> None:
    x = Inputs(t=4096, v=40, dtype=torch.float32)
    with Operations() as ran:
        x.loss(Objective()).loss_sum.backward()
    assert ran.largest <= otr.rows.TILE_BYTES


def test_only_the_wanted_products_run(chunks) -> None:
    for frozen, wanted in (
        ((), {"logits": 3, "hidden": 3, "weight": 3}),
        (("weight",), {"logits": 3, "hidden": 3}),
        (("hidden",), {"logits": 3, "weight": 3}),
        (("hidden", "weight"), {"logits": 3}),
        (("all",), {"logits": 3}),
    ):
        x = Inputs()
        chunks(x, 4, 4)
        for name in frozen:
            if name != "all":
                getattr(x, name).requires_grad_(False)
        with torch.set_grad_enabled("all" not in frozen), Operations() as ran:
            out = x.loss(SAMPLED)
            if out.loss_sum.requires_grad:
                out.loss_sum.backward()
        kinds = {29: "logits", 8: "hidden"}
        counts = {}
        for shape in ran.products:
            kind = "weight" if shape == (29, 8) else kinds[shape[1]]
            counts[kind] = counts.get(kind, 0) + 1
        assert counts == wanted


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

    more = {"generator": generator()}
    ours = gradient(lambda h: linear_token_loss(h, x.weight, x.target, objective, **more))
    more = {"generator": generator()}
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


def test_the_losss_own_gradient_multiplies_ours() -> None:
    x = Inputs(dtype=torch.bfloat16)
    one = x.gradients(x.loss(SFT).loss_sum)
    many = x.gradients(x.loss(SFT).loss_sum * (1 / 3))
    for a, b in zip(one, many, strict=True):
        torch.testing.assert_close(b, (a.float() / 3).bfloat16(), rtol=0, atol=0)


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
        out = linear_token_loss(
            hidden * 2, self.embed.weight, target, self.objective, generator=generator()
        )
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


def test_a_masked_token_is_never_trained_towards_and_an_error_as_a_target(chunks) -> None:
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


H, W, Y = torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_VD": torch.zeros(9, 2)}, r"hidden \(4, 3\) and weight \(9, 2\): use .* same D"),
        ({"weight_VD": torch.zeros(9)}, r"hidden \(4, 3\) and weight \(9,\): use \[T, D\]"),
        ({"hidden_TD": torch.zeros(2, 2, 3)}, r"hidden \(2, 2, 3\) and weight"),
        ({"weight_VD": W.bfloat16()}, "hidden is torch.float32, weight torch.bfloat16: use"),
        ({"hidden_TD": H.long(), "weight_VD": W.long()}, "hidden is torch.int64"),
        ({"target_T": torch.tensor([0, 9, 1, 2])}, "target 9 in row 1: use 0 to 8 or -100"),
        ({"target_T": Y[:3]}, r"target is \(3,\): use \[4\]"),
        ({"target_T": Y.int()}, "target is torch.int32: use int64"),
        ({"position_T": Y[:2]}, r"position is \(2,\): use \[4\]"),
        ({"bias": torch.zeros(8)}, r"bias is \(8,\): use \[9\]"),
        ({"softcap": 0.0}, "softcap is 0.0: use a number > 0"),
        ({"softcap": -5.0}, "softcap is -5.0: use a number > 0"),
        ({"generator": Elsewhere()}, "generator is on cuda:1: use the CPU or cpu"),
        ({"backend": "cuda"}, "backend 'cuda': use 'torch', 'triton' or None"),
    ],
)
def test_bad_arguments_are_named_before_any_product(change: dict, words: str) -> None:
    good = {"hidden_TD": H, "weight_VD": W, "target_T": Y, "objective": SAMPLED}
    with Operations() as ran:
        linear_token_loss(**good)
    assert ran.products
    with (
        Operations() as ran,
        pytest.raises((ValueError, TypeError), match=words),
    ):
        linear_token_loss(**good | change)
    assert not ran.products
