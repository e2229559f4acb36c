"""What compares with another model: the KL to a base, and PSFT's ratio to the start."""

import math

import pytest
import torch
from torch import Tensor

from otr import IGNORE_INDEX, Objective, linear_token_loss, token_loss
from otr.loss.functional import _plain
from otr.loss.fused import BaseStates
from otr.loss.rows import FIGURES
from tests.otr.loss import oracle
from tests.otr.loss.losses import EXACT, OBJECTIVES, Inputs, both, by_logits, rows
from tests.otr.loss.oracle import generator

WEIGHT = torch.tensor([1.0, 0.0, -0.5, 2.0, 0.25, 1.0])
PSFT = Objective("psft")


def other(num: int, width: int) -> Tensor:
    return 2 * torch.randn(num, width, dtype=torch.float64, generator=generator(5))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@both
def test_the_kl_is_added_to_every_objective_whatever_the_weights(function, objective) -> None:
    """Its gradient is k (p - b)."""
    logits, target = rows(6, 11)
    target[3] = IGNORE_INDEX
    base, more = other(6, 11), {"weight_T": WEIGHT, "position_T": torch.arange(6)}
    plain = function(logits, target, objective, generator=generator(), **more)
    more |= {"base_logits_TV": base, "kl_weight": 0.3}
    near = function(logits, target, objective, generator=generator(), **more)
    scored = target != IGNORE_INDEX
    kl = oracle.kl(base, logits.detach())[scored].sum()
    assert near.kl_sum.item() == pytest.approx(kl.item(), rel=1e-6)
    assert (near.loss_sum - plain.loss_sum).item() == pytest.approx(0.3 * kl.item(), rel=1e-5)
    dz = [torch.autograd.grad(out.loss_sum, logits)[0] for out in (near, plain)]
    p, b = (torch.softmax(each, -1) for each in (logits.detach(), base))
    torch.testing.assert_close(dz[0] - dz[1], 0.3 * (p - b) * scored[:, None], **EXACT)
    for name in ("num_tokens", "nll_sum", "hit_sum", "entropy_sum"):
        assert getattr(near, name) == getattr(plain, name)
    assert plain.kl_sum is None and (plain + plain).kl_sum is None
    assert (near + near).kl_sum == 2 * near.kl_sum


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("own_head", [True, False])
def test_the_fused_loss_equals_the_plain_one_over_chunks(softcap, own_head: bool, chunks) -> None:
    """With a bias, a scale, a factor, and a base of another width or with the same head."""
    x = Inputs()
    chunks(x, 8, 3)  # the two models' logits share a chunk's memory
    hidden = x.hidden.detach() + 0.3 * other(13, 8) if own_head else other(13, 5)
    weight, bias = x.weight if own_head else other(29, 5), other(1, 29)[0]

    def logits(hidden: Tensor, weight: Tensor) -> Tensor:
        z = 0.5 * (hidden @ weight.T + bias)
        return z if softcap is None else softcap * torch.tanh(z / softcap)

    more = {"kl_weight": 0.3, "start_T": oracle.start(x.target), "generator": generator()}
    wanted = token_loss(
        logits(x.hidden, x.weight), x.target, PSFT,
        base_logits_TV=logits(hidden, weight.detach()), **more,
    )  # fmt: skip
    base = BaseStates(hidden, weight, bias)
    ours = x.loss(PSFT, base=base, bias=bias, logit_scale=0.5, softcap=softcap, factor=0.5, **more)
    assert ours.loss_sum.item() == pytest.approx(wanted.loss_sum.item() / 2, rel=1e-6)
    assert ours.kl_sum.item() == pytest.approx(wanted.kl_sum.item(), rel=1e-6)
    grads = [grad / 2 for grad in x.gradients(wanted.loss_sum)]
    torch.testing.assert_close([*x.gradients(ours.loss_sum)], grads, **EXACT)


def test_gradcheck_of_the_kl_and_of_psft() -> None:
    """Finite differences of the definitions; nothing is held constant."""
    logits, target = rows(4, 7)
    base, start = other(4, 7), oracle.start(target)
    position = torch.arange(4)

    def figures(logits: Tensor) -> Tensor:
        return _plain(logits, target, PSFT, 0, position, start, base)

    assert torch.autograd.gradcheck(lambda z: figures(z)[FIGURES].sum(), logits)
    wanted = torch.autograd.grad(oracle.ratio_loss(logits, target, PSFT).sum(), logits)[0]
    torch.testing.assert_close(
        torch.autograd.grad(figures(logits)[0].sum(), logits)[0], wanted, **EXACT
    )
    assert torch.autograd.gradcheck(lambda z: oracle.ratio_loss(z, target, PSFT).sum(), logits)
    ratio = -oracle.ratio_loss(logits, target, PSFT)
    assert ratio.max() == 1.28 and ratio.min() < 1, "both sides of the bound"


def test_a_target_that_is_clipped_has_no_gradient_however_unlikely_it_was() -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    start = torch.tensor([math.log(0.25), -80.0, -500.0])
    for function in (token_loss, linear):
        out = function(logits, torch.tensor([0, 1, 2]), PSFT, start_T=start)
        assert out.loss_sum.item() == pytest.approx(-1 - 1.28 - 1.28)
        (dz,) = torch.autograd.grad(out.loss_sum, logits)
        assert dz[0, 0] == -0.75 and not dz[1:].any()


def linear(logits: Tensor, *rest, **more):
    return linear_token_loss(logits, torch.eye(4), *rest, **more)


def test_masked_tokens_do_not_count() -> None:
    logits, target = rows(6, 11)
    base = other(6, 11)
    pad = (0, 5)
    wide, wide_base = (
        torch.nn.functional.pad(each.detach(), pad, value=-math.inf) for each in (logits, base)
    )
    for function in (by_logits, linear_rows):
        one, two = (
            function(z, target, OBJECTIVES["sft"], base_logits_TV=b, kl_weight=1.0)
            for z, b in ((logits, base), (wide, wide_base))
        )
        assert one.loss_sum.item() == pytest.approx(two.loss_sum.item(), rel=1e-6)


def linear_rows(logits: Tensor, target: Tensor, objective: Objective, **more):
    """`linear_token_loss` with -inf from a bias: -inf times a weight of 0 would be NaN."""
    finite = logits.detach().clamp(min=-1e9)
    bias = torch.where(logits[0].isinf(), -math.inf, 0.0).double()
    base = more.pop("base_logits_TV").clamp(min=-1e9)
    eye = torch.eye(logits.shape[-1], dtype=torch.float64)
    return linear_token_loss(
        finite, eye, target, objective, bias=bias, base=BaseStates(base, eye, bias), **more
    )


def test_what_is_missing_or_wrong_is_refused() -> None:
    logits, target = rows(6, 11)
    eye = torch.eye(11, dtype=torch.float64)
    good = BaseStates(other(6, 11), eye)
    start = torch.full((6,), -1.0)
    for function, missing in (
        (lambda **more: token_loss(logits, target, PSFT, **more), "give base_logits_TV"),
        (lambda **more: linear_token_loss(logits, eye, target, PSFT, **more), "give base, the"),
    ):
        for more, words in (
            ({}, "objective 'psft' needs start_T, .* give it, or use another objective"),
            ({"start_T": start[:5]}, r"start is torch.float32 \(5,\): use floats, \[6\]"),
            ({"start_T": -start}, "start 1.0 in row 0: use log-probabilities, finite and at most"),
            ({"start_T": start, "kl_weight": 0.1}, f"kl_weight is 0.1, but nothing .*{missing}"),
            ({"start_T": start, "kl_weight": -0.1}, "kl_weight is -0.1: use a number >= 0"),
        ):
            with pytest.raises(ValueError, match=words):
                function(**more)
    with pytest.raises(ValueError, match=r"base logits are torch.float64 \(6, 7\): use floats"):
        token_loss(logits, target, OBJECTIVES["sft"], base_logits_TV=other(6, 7))
    for base, words in (
        (BaseStates(other(5, 11), eye), r"base hidden \(5, 11\) .* use \[6, D\] and \[11, D\]"),
        (BaseStates(other(6, 11), other(7, 11)), r"weight \(7, 11\): use"),
        (BaseStates(good.hidden_TD, eye, other(1, 7)[0]), r"base bias is \(7,\): use \[11\]"),
    ):
        with pytest.raises(ValueError, match=words):
            linear_token_loss(logits, eye, target, OBJECTIVES["sft"], base=base)
    broken = other(6, 11)
    broken[2, 3] = math.nan
    with pytest.raises(FloatingPointError, match="the logits of row 2 or its base hold NaN"):
        linear_token_loss(logits, eye, target, OBJECTIVES["sft"], base=BaseStates(broken, eye))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_at_no_distance_from_itself(dtype: torch.dtype) -> None:
    x = Inputs(v=300, dtype=dtype)
    same = BaseStates(x.hidden.detach(), x.weight)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = x.loss(OBJECTIVES["sft"], base=same, kl_weight=1.0)
    assert out.kl_sum.item() == pytest.approx(0, abs=1e-4)
