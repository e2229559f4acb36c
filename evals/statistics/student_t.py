"""Student's t with any degrees of freedom, by numerical integration: numpy alone.

In: t, degrees of freedom of at least 1. Out: a probability, or the quantile of a 95 % interval.
"""

import math

import numpy as np

_POINTS = 4001
_TAIL = 0.05
_HIGHEST = 13.0  # the quantile at one degree of freedom is 12.71


def two_sided(t: float, freedom: float) -> float:
    """P(|T| >= t).

    With T = sqrt(freedom) tan(x) the density becomes cos(x)^(freedom - 1) times a constant, smooth
    on a bounded range.
    """
    start = math.atan(abs(t) / math.sqrt(freedom))
    x = np.linspace(start, math.pi / 2, _POINTS)
    log_constant = (
        math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    )
    density = np.exp(log_constant) * np.clip(np.cos(x), 0.0, 1.0) ** (freedom - 1)
    return min(1.0, 2 * float(np.trapezoid(density, x)))


def quantile(freedom: float) -> float:
    """The t with P(|T| >= t) = 0.05, by bisection."""
    low, high = 0.0, _HIGHEST
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > _TAIL else (low, middle)
    return (low + high) / 2
