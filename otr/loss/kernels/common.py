"""What the kernels share: the record of a row, and a logit after the soft cap.

Names: z is a logit after the soft cap; p = softmax(z), q = softmax(z / kappa). Powers and
logarithms have base 2, since a GPU computes exp2 in one instruction and exp in five. So log2 p is
LOG2E * z - shift - lse with shift = LOG2E * (the row's largest z). Pointers end in `_ptr`; `width`
is the vocabulary, `stride` the distance between rows of logits in memory.
"""

# ruff: noqa: PLR0913 - a kernel's arguments are its tensors

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FLOOR = tl.constexpr(-1e30)  # of a maximum: -inf - -inf and 0 * -inf would be NaN

# The record of a row, float32 numbers that the kernels hand on.
RECORD = tl.constexpr(9)
TOP = tl.constexpr(0)  # the largest z
LSE = tl.constexpr(1)  # log2 of the sum of 2^(LOG2E * (z - top))
LSE_Q = tl.constexpr(2)  # the same of z / kappa
MEAN = tl.constexpr(3)  # mean of LOG2E * (z - top) under p
MEAN_Q = tl.constexpr(4)  # the same under q
OF_P = tl.constexpr(5)  # coefficient of p in the row's gradient
OF_Q = tl.constexpr(6)  # coefficient of q
AT_TARGET = tl.constexpr(7)  # the gradient of the target's logit
MISSES = tl.constexpr(8)  # number of draws that are not the target


@triton.jit
def capped(z, cap, CAPPED: tl.constexpr):
    """Return cap * tanh(z / cap)."""
    if CAPPED:
        z = cap - 2 * cap / (1 + tl.exp2(z * (1 / cap * (2 * LOG2E))))
    return z


@triton.jit
def cap_slope(z, cap, CAPPED: tl.constexpr):
    """Return the derivative of the soft cap where its result is z."""
    slope = 1.0
    if CAPPED:
        share = z * (1 / cap)
        slope = 1 - share * share
    return slope


@triton.jit
def load_logits(z_ptr, column, readable, inside, cap, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """Return logits of a row in float32; if MASKED, -inf where they are not `inside`.

    `readable` is `inside` and the rest of the row in memory, so that loads have 16 bytes whatever
    the vocabulary, if the stride is a multiple of 16.
    """
    if MASKED:
        z = tl.load(z_ptr + column, mask=readable, other=0.0).to(tl.float32)
        z = tl.where(inside, capped(z, cap, CAPPED), float("-inf"))
    else:
        z = capped(tl.load(z_ptr + column).to(tl.float32), cap, CAPPED)
    return z
