"""The two passes over a chunk of logits: statistics of each row, and the gradient in place.

A row is processed in spans of SPAN logits, PER of them in a thread, which loads them in 16 bytes.
"""

# ruff: noqa: PLR0913 - a kernel's arguments are its tensors

import triton
import triton.language as tl

from otr.loss.kernels.common import (
    FLOOR,
    LOG2E,
    LSE,
    LSE_Q,
    MEAN,
    MEAN_Q,
    OF_P,
    OF_Q,
    RECORD,
    TOP,
    cap_slope,
    load_logits,
)


@triton.jit
def statistics(
    z_ptr, record_ptr, high_ptr, sum_ptr, width, stride, blocks, inverse_kappa, cap,
    TEMPERED: tl.constexpr, BLOCKS: tl.constexpr, CAPPED: tl.constexpr,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Store TOP, LSE and MEAN of each row; LSE_Q and MEAN_Q if TEMPERED; if BLOCKS, block sums.

    Of each block of BLOCK logits, `high` is the largest LOG2E * z / kappa and `sum` that of
    2^(LOG2E * z / kappa - high). Each thread has its own running maximum and sums, so that in the
    loop over the row threads exchange numbers only for the blocks.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride
    high_ptr += row * blocks
    sum_ptr += row * blocks
    column = tl.arange(0, SPAN)
    zero_L = tl.zeros((SPAN // PER,), tl.float32)
    state = (zero_L + FLOOR, zero_L, zero_L, zero_L, zero_L)
    full = width // SPAN * SPAN
    for start in range(0, full, SPAN):
        z = load_logits(z_ptr, start + column, True, True, cap, CAPPED, False)
        if BLOCKS:
            _store_blocks(z, high_ptr, sum_ptr, start, inverse_kappa, SPAN, BLOCK, PER)
        state = _accumulate(z, state, inverse_kappa, TEMPERED, SPAN, PER)
    if full < width:
        column += full
        z = load_logits(z_ptr, column, column < stride, column < width, cap, CAPPED, True)
        if BLOCKS:
            _store_blocks(z, high_ptr, sum_ptr, full, inverse_kappa, SPAN, BLOCK, PER)
        state = _accumulate(z, state, inverse_kappa, TEMPERED, SPAN, PER)
    top_L, total_L, first_L, total_q_L, first_q_L = state
    top = tl.max(top_L, axis=0)
    shift_L = top_L * LOG2E - top * LOG2E
    weight_L = tl.exp2(shift_L)
    total = tl.sum(total_L * weight_L, axis=0)
    first = tl.sum((first_L + shift_L * total_L) * weight_L, axis=0)
    record_ptr += row * RECORD
    tl.store(record_ptr + TOP, top)
    tl.store(record_ptr + LSE, tl.log2(total))
    tl.store(record_ptr + MEAN, first / total)
    if TEMPERED:
        weight_L = tl.exp2((top_L - top) * (inverse_kappa * LOG2E))
        total = tl.sum(total_q_L * weight_L, axis=0)
        first = tl.sum((first_q_L + shift_L * total_q_L) * weight_L, axis=0)
        tl.store(record_ptr + LSE_Q, tl.log2(total))
        tl.store(record_ptr + MEAN_Q, first / total)


@triton.jit
def _accumulate(
    z, state, inverse_kappa,
    TEMPERED: tl.constexpr, SPAN: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Add a span to each thread's maximum, sums of weights, and sums of weights times exponent."""
    top_L, total_L, first_L, total_q_L, first_q_L = state
    z_LP = tl.reshape(z, (SPAN // PER, PER))
    new_L = tl.maximum(top_L, tl.max(z_LP, axis=1))
    shift_L = top_L * LOG2E - new_L * LOG2E
    exponent_LP = z_LP * LOG2E - (new_L * LOG2E)[:, None]
    finite_LP = tl.maximum(exponent_LP, FLOOR)
    weight_LP = tl.exp2(exponent_LP)
    kept_L = tl.exp2(shift_L)
    first_L = kept_L * (first_L + shift_L * total_L) + tl.sum(weight_LP * finite_LP, axis=1)
    total_L = kept_L * total_L + tl.sum(weight_LP, axis=1)
    if TEMPERED:
        scale = inverse_kappa * LOG2E
        weight_LP = tl.exp2(z_LP * scale - (new_L * scale)[:, None])
        kept_L = tl.exp2(top_L * scale - new_L * scale)
        first_q_L = kept_L * (first_q_L + shift_L * total_q_L)
        first_q_L += tl.sum(weight_LP * finite_LP, axis=1)
        total_q_L = kept_L * total_q_L + tl.sum(weight_LP, axis=1)
    return new_L, total_L, first_L, total_q_L, first_q_L


@triton.jit
def _store_blocks(
    z, high_ptr, sum_ptr, start, inverse_kappa,
    SPAN: tl.constexpr, BLOCK: tl.constexpr, PER: tl.constexpr,
):  # fmt: skip
    """Store each block's largest z / kappa, and the sum of the powers of z / kappa less that."""
    N: tl.constexpr = SPAN // BLOCK
    scale = inverse_kappa * LOG2E
    z_LP = tl.reshape(z, (SPAN // PER, PER))
    z_NL = tl.reshape(tl.max(z_LP, axis=1), (N, BLOCK // PER))
    high_N = tl.maximum(tl.max(z_NL, axis=1), FLOOR) * scale
    high_L = tl.reshape(tl.broadcast_to(high_N[:, None], (N, BLOCK // PER)), (SPAN // PER,))
    sum_L = tl.sum(tl.exp2(z_LP * scale - high_L[:, None]), axis=1)
    block = start // BLOCK + tl.arange(0, N)
    tl.store(high_ptr + block, high_N)
    sum_N = tl.sum(tl.reshape(sum_L, (N, BLOCK // PER)), axis=1)
    tl.store(sum_ptr + block, sum_N)


@triton.jit
def gradient_(
    z_ptr, record_ptr, base_ptr, base_record_ptr, part_ptr, width, stride, base_stride,
    inverse_kappa, cap,
    DENSE_Q: tl.constexpr, CAPPED: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Replace the logits by OF_P * p - OF_Q * q, times the slope of the soft cap.

    With base logits (None: there are none), OF_P * b of the base's record is subtracted too, where
    b is the base's distribution, and each program stores its part of KL(base || p) in bits.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride
    record_ptr += row * RECORD
    start = tl.program_id(1) * SPAN
    column = start + tl.arange(0, SPAN)
    if base_ptr is not None:
        base_ptr += row * base_stride
        base_record_ptr += row * RECORD
        part_ptr += row * tl.num_programs(1) + tl.program_id(1)
    if start + SPAN <= width:
        z = load_logits(z_ptr, column, True, True, cap, CAPPED, False)
        slope = _slope(z, record_ptr, inverse_kappa, cap, DENSE_Q, CAPPED)
        if base_ptr is not None:
            of_base = load_logits(base_ptr, column, True, True, cap, CAPPED, False)
            slope -= _base(z, of_base, record_ptr, base_record_ptr, part_ptr, cap, CAPPED)
        tl.store(z_ptr + column, slope.to(z_ptr.dtype.element_ty))
    else:
        inside = column < width
        z = load_logits(z_ptr, column, column < stride, inside, cap, CAPPED, True)
        slope = _slope(z, record_ptr, inverse_kappa, cap, DENSE_Q, CAPPED)
        if base_ptr is not None:
            readable = column < base_stride
            of_base = load_logits(base_ptr, column, readable, inside, cap, CAPPED, True)
            slope -= _base(z, of_base, record_ptr, base_record_ptr, part_ptr, cap, CAPPED)
        tl.store(z_ptr + column, slope.to(z_ptr.dtype.element_ty), mask=column < width)


@triton.jit
def _base(z, of_base, record_ptr, base_record_ptr, part_ptr, cap, CAPPED: tl.constexpr):
    """Store a span's part of the KL; return the base's part of the gradient."""
    logp = z * LOG2E - tl.load(record_ptr + TOP) * LOG2E - tl.load(record_ptr + LSE)
    shift = tl.load(base_record_ptr + TOP) * LOG2E
    logb = of_base * LOG2E - shift - tl.load(base_record_ptr + LSE)
    b = tl.exp2(logb)
    part = tl.where(b == 0, 0.0, b * (logb - logp))  # masked tokens are -inf in both
    tl.store(part_ptr, tl.sum(part, axis=0))
    return tl.load(base_record_ptr + OF_P) * b * cap_slope(z, cap, CAPPED)


@triton.jit
def _slope(z, record_ptr, inverse_kappa, cap, DENSE_Q: tl.constexpr, CAPPED: tl.constexpr):
    top = tl.load(record_ptr + TOP)
    p = tl.exp2(z * LOG2E - top * LOG2E - tl.load(record_ptr + LSE))
    slope = tl.load(record_ptr + OF_P) * p
    if DENSE_Q:
        scale = inverse_kappa * LOG2E
        q = tl.exp2(z * scale - top * scale - tl.load(record_ptr + LSE_Q))
        slope -= tl.load(record_ptr + OF_Q) * q
    return slope * cap_slope(z, cap, CAPPED)
