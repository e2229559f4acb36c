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
    """Return an objective's `weight` or `coefficients` as a function that a kernel can call."""
    kind = type(objective)
    function = kind.weight if objective.is_weighted else kind.coefficients
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return function if interpreted else _jit(function)  # the interpreter runs Python as it is


@cache
def _jit(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@triton.jit
def coefficients(
    p, log_p, q, share, entropy, lse,
    OBJECTIVE: tl.constexpr, FORM: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Return P, Q, Y and M of a row's gradient and the penalty, all of them float32.

    See `otr.loss.rows.gradient_coefficients`, which calls the same functions.

    Args:
        p: the target's probability.
        log_p: its natural logarithm.
        q: the same at the temperature kappa.
        share: of the draws that are the target, or its expectation.
        entropy: of the row, in nats.
        lse: log of the sum of the exponentials of the row's logits, in nats.
        OBJECTIVE: the objective; its settings are compiled in.
        FORM: its `compiled_form`.
        WEIGHTED: whether that is `Objective.weight`.
    """
    if WEIGHTED:
        weight = tl.cast(FORM(OBJECTIVE, tl, p, log_p, entropy), tl.float32)
        zero = tl.zeros((), tl.float32)
        return weight, zero, weight, zero, zero
    else:
        of_p, of_q, of_target, of_miss, penalty = FORM(OBJECTIVE, tl, p, q, share, entropy, lse)
        return (
            tl.cast(of_p, tl.float32),
            tl.cast(of_q, tl.float32),
            tl.cast(of_target, tl.float32),
            tl.cast(of_miss, tl.float32),
            tl.cast(penalty, tl.float32),
        )
