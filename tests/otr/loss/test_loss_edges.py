"""Extreme, empty and wrong input gives a finite loss, or an error that names the problem."""

import math
from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from otr import IGNORE_INDEX, LossOutput, Objective
from tests.otr.loss import oracle
from tests.otr.loss.losses import (
    OBJECTIVES,
    SAMPLED,
    Elsewhere,
    both,
    by_logits,
    by_rows,
    by_token_loss,
    every_objective,
    rows,
)

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
    """Any shape, masked entries, a vocabulary of one; targets are never masked."""
    o = replace(objective, temperature=kappa) if objective.name == "otr" else objective
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
        losses = oracle.losses(logits, target, o, terms)
        torch.testing.assert_close(figures[0].double(), losses, **slack)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_objective
@both
def test_nan_is_an_error_that_names_the_row(function, objective: Objective, value: float) -> None:
    logits, target = rows(9, 5)
    target[[1, 4]] = IGNORE_INDEX
    bad = logits.detach().clone()
    bad[4] = value  # not scored, so not checked
    assert torch.isfinite(function(bad, target, objective).loss_sum)
    bad[6] = value
    bad[8] = value
    with pytest.raises(FloatingPointError, match="row 6 "):
        function(bad, target, objective)


@every_objective
def test_a_masked_target_is_an_error_that_names_the_row(objective: Objective) -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = -math.inf
    assert torch.isfinite(by_logits(logits, torch.tensor([0, 1, 2]), objective).loss_sum)
    with pytest.raises(FloatingPointError, match="row 1 "):
        by_logits(logits, torch.tensor([0, 2, 2]), objective)


@pytest.mark.parametrize("target", [torch.full((3,), IGNORE_INDEX), torch.empty(0).long()])
@every_objective
@both
def test_without_scored_positions_the_loss_is_zero_and_can_go_backward(
    function, objective, target: Tensor
) -> None:
    logits = torch.randn(len(target), 5, requires_grad=True)
    out = function(logits, target, objective)
    out.loss_sum.backward()
    for name in ("loss_sum", "num_tokens", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
        assert getattr(out, name) == 0
    assert logits.grad.shape == logits.shape and not logits.grad.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "oft"}, "objective.name is 'oft': did you mean 'sft'.* Use one of .*'otr'"),
        ({"name": "sft", "z_loss": "1e-4"}, "z_loss is '1e-4': use a number"),
        ({"reward_scale": True}, "reward_scale is True: use a number"),
        ({"name": None}, "objective.name is None: use one of 'chord'"),
        ({"name": "K"}, "objective.name is 'K': use one of 'chord'"),
        ({"name": "sft", "num_samples": 16}, "num_samples is 16, but it is a setting of otr, not"),
        (
            {"label_smoothing": 0.1},
            "label_smoothing is 0.1, but it is a setting of sft, not of",
        ),
        ({"num_sample": 16}, "'otr' has no 'num_sample': did you mean 'num_samples'"),
        ({"name": "sft", "label_smoothing": 1.0}, "label_smoothing is 1.0: use a number from 0 to"),
        ({"name": "sft", "z_loss": math.nan}, "z_loss is nan: use a number >= 0"),
        ({"name": "power", "exponent": -1.0}, "exponent is -1.0: use a number >= 0"),
        ({"name": "threshold", "threshold": 1.5}, "threshold is 1.5: use a number from 0 to 1"),
        ({"name": "clipped", "threshold": math.nan}, "threshold is nan: use a number from 0 to 1"),
        ({"name": "idft", "surprise_scale": 0.0}, "surprise_scale is 0.0: use a number > 0"),
        (
            {"estimator": "exact"},
            "objective.estimator is 'exact': use 'sampled', 'half' or 'expected'",
        ),
        ({"num_samples": 0}, "objective.num_samples is 0: use an integer >= 1"),
        ({"num_samples": -3}, "objective.num_samples is -3: use an integer"),
        ({"num_samples": 2.0}, "objective.num_samples is 2.0: use an integer"),
        ({"num_samples": True}, "objective.num_samples is True: use an integer"),
        ({"temperature": 0.0}, "objective.temperature is 0.0: use a number > 0"),
        ({"temperature": -1.0}, "objective.temperature is -1.0: use a number > 0"),
        ({"temperature": math.inf}, "objective.temperature is inf"),
        ({"temperature": math.nan}, "objective.temperature is nan"),
        ({"mismatch_reward": math.nan}, "mismatch_reward is nan: use a finite number"),
        ({"reward_scale": math.inf}, "reward_scale is inf: use a finite number"),
    ],
)
def test_an_invalid_objective_is_refused(change: dict, words: str) -> None:
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
def test_invalid_arguments_are_refused(function, change: dict, words: str) -> None:
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
