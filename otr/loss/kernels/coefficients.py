"""The coefficients of a row's gradient in a kernel: the objective's own function, compiled."""

# ruff: noqa: PLR0913 - one argument per number of the formula

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import triton
import triton.language as tl

from otr.loss.objective import Objective


def compiled_form(objective: Objective) -> Any:
    """Return the function that gives an objective's gradient, such that a kernel can call it."""
    kind = type(objective)
    function: Callable[..., Any] = kind.weight if objective.is_weighted else kind.coefficients
    if objective.needs_start:
        function = kind.of_ratio
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return function if interpreted else _jit(function)  # the interpreter runs Python as it is


@cache
def _jit(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@triton.jit
def coefficients(
    p, log_p, log_ratio, q, share, entropy, lse,
    OBJECTIVE: tl.constexpr, FORM: tl.constexpr, WEIGHTED: tl.constexpr, RATIO: tl.constexpr,
):  # fmt: skip
    """Return P, Q, Y and M of a row's gradient and the penalty, all of them float32.

    See `otr.loss.rows.gradient_coefficients`, which calls the same functions.

    Args:
        p: the target's probability.
        log_p: its natural logarithm.
        log_ratio: the same, less what it was before training.
        q: the same at the temperature kappa.
        share: of the draws that are the target, or its expectation.
        entropy: of the row, in nats.
        lse: log of the sum of the exponentials of the row's logits, in nats.
        OBJECTIVE: the objective; its settings are compiled in.
        FORM: its `compiled_form`.
        WEIGHTED: whether that is `Objective.weight`.
        RATIO: whether it is `Objective.of_ratio`.
    """
    if WEIGHTED:
        weight = tl.cast(FORM(OBJECTIVE, tl, p, log_p, entropy), tl.float32)
        zero = tl.zeros((), tl.float32)
        return weight, zero, weight, zero, zero
    elif RATIO:
        of_ratio, of_loss = FORM(OBJECTIVE, tl, tl.exp(log_ratio))
        weight, loss = tl.cast(of_ratio, tl.float32), tl.cast(of_loss, tl.float32)
        zero = tl.zeros((), tl.float32)
        return weight, zero, weight, zero, loss + tl.where(weight == 0, 0.0, weight * log_p)
    else:
        of_p, of_q, of_target, of_miss, penalty = FORM(OBJECTIVE, tl, p, q, share, entropy, lse)
        return (
            tl.cast(of_p, tl.float32),
            tl.cast(of_q, tl.float32),
            tl.cast(of_target, tl.float32),
            tl.cast(of_miss, tl.float32),
            tl.cast(penalty, tl.float32),
        )
