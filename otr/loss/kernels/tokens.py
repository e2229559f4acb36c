"""What concerns the few tokens of a row: its target and draws, and with them loss and coefficients.

One program per row. Of the K draws only the misses, the draws that are not the target, go through
the steps after the first, so likely targets cost little. Their scratch memory is [C, places]:
`token` holds a miss's number, then its block, then its token; `value` its uniform, then its logit,
then its gradient. Each step reads what other threads of the program wrote in the one before, hence
the barriers.
"""

# ruff: noqa: PLR0913 - a kernel's arguments are its tensors

import triton
import triton.language as tl

from otr.loss.kernels.coefficients import coefficients
from otr.loss.kernels.common import (
    AT_TARGET,
    FLOOR,
    LN2,
    LOG2E,
    LSE,
    LSE_Q,
    MEAN,
    MEAN_Q,
    MISSES,
    OF_P,
    OF_Q,
    RECORD,
    TOP,
    cap_slope,
    capped,
    load_logits,
)


@triton.jit
def _hash(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _row_keys(position, seed_low, seed_high):
    """Compute `otr.loss.draws.row_keys`."""
    low = (position & 0xFFFFFFFF).to(tl.uint32) ^ seed_low.to(tl.uint32, bitcast=True)
    low = _hash(low)
    high = ((position >> 32) & 0xFFFFFFFF).to(tl.uint32) ^ seed_high.to(tl.uint32, bitcast=True)
    return low, _hash(high ^ low)


@triton.jit
def _uniform(low, high, draw, WORD: tl.constexpr):
    """Compute `otr.loss.draws.uniforms`."""
    key = _hash((draw * 4 + (WORD + 1)).to(tl.uint32))
    return (_hash(_hash(low ^ key) + high) >> 8).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def _point(uniform, total):
    """Return uniform * total, always less than the total whatever the rounding."""
    bits = total.to(tl.int32, bitcast=True)
    below = tl.maximum(bits - 1, 0).to(tl.float32, bitcast=True)
    return tl.minimum(uniform * total, below)


@triton.jit
def _cumulate_blocks(
    z_ptr, cdf_ptr, high_ptr, sum_ptr, y, shift, width, stride, blocks, scale, cap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr, CDF: tl.constexpr,
):  # fmt: skip
    """Store the cumulative sums of the blocks without the target; return log2 of all with it."""
    own = y // BLOCK
    column = own * BLOCK + tl.arange(0, BLOCK)
    others = (column < width) & (column != y)
    z = load_logits(z_ptr, column, column < stride, others, cap, CAPPED, True)
    rest = tl.sum(tl.exp2(z * scale - tl.load(high_ptr + own)), axis=0)
    total = 0.0
    before = 0.0
    for start in range(0, blocks, CDF):
        block = start + tl.arange(0, CDF)
        high = tl.load(high_ptr + block, mask=block < blocks, other=FLOOR)
        sums = tl.load(sum_ptr + block, mask=block < blocks, other=0.0)
        share = tl.exp2(high - shift)
        total += tl.sum(share * sums, axis=0)
        cdf = before + tl.cumsum(share * tl.where(block == own, rest, sums), axis=0)
        tl.store(cdf_ptr + block, cdf, mask=block < blocks)
        before = tl.max(cdf, axis=0)
    return tl.log2(total)


@triton.jit
def _count_hits(
    token_ptr, low, high, q, samples, STORE: tl.constexpr, HIT: tl.constexpr, LANES: tl.constexpr
):
    """Return how many draws are the target; store the numbers of the others one after another."""
    misses = 0
    for start in range(0, samples, LANES):
        k = start + tl.arange(0, LANES)
        miss = (_uniform(low, high, k, HIT) >= q) & (k < samples)
        if STORE:
            place = misses + tl.cumsum(miss.to(tl.int32), axis=0) - 1
            tl.store(token_ptr + place, k, mask=miss)
        misses += tl.sum(miss.to(tl.int32), axis=0)
    return samples - misses


@triton.jit
def _draw_blocks(
    token_ptr, value_ptr, cdf_ptr, low, high, misses, blocks, steps,
    NUMBERED: tl.constexpr, WHICH_BLOCK: tl.constexpr, WHICH_ENTRY: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Replace each miss's number by its block, found by bisection, and store its second uniform."""
    total = tl.load(cdf_ptr + blocks - 1)
    for start in range(0, misses, LANES):
        place = start + tl.arange(0, LANES)
        inside = place < misses
        k = place
        if NUMBERED:
            k = tl.load(token_ptr + place, mask=inside, other=0)
        point = _point(_uniform(low, high, k, WHICH_BLOCK), total)
        first = tl.zeros((LANES,), tl.int32)
        last = first + (blocks - 1)
        for _ in range(steps):
            middle = (first + last) // 2
            above = tl.load(cdf_ptr + middle) > point
            first = tl.where(above | (first >= last), first, middle + 1)
            last = tl.where(above, middle, last)
        tl.store(token_ptr + place, first, mask=inside)
        tl.store(value_ptr + place, _uniform(low, high, k, WHICH_ENTRY), mask=inside)


@triton.jit
def _draw_entries(
    z_ptr, token_ptr, value_ptr, high_ptr, y, misses, width, stride, scale, cap,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """Replace each miss's block by a token in it, the target if it has no other; store its z.

    The places of a tile beyond the misses get the token -1.
    """
    for start in range(0, misses, DRAWS):
        place = start + tl.arange(0, DRAWS)
        inside = place < misses
        block = tl.load(token_ptr + place, mask=inside, other=0)
        uniform = tl.load(value_ptr + place, mask=inside, other=0.0)
        high = tl.load(high_ptr + block)
        column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        others = (column < width) & (column != y)
        readable = (column < stride) & inside[:, None]
        z = load_logits(z_ptr, column, readable, others, cap, CAPPED, True)
        cdf = tl.cumsum(tl.exp2(z * scale - high[:, None]), axis=1)
        total = tl.max(cdf, axis=1)
        entry = tl.sum((cdf <= _point(uniform, total)[:, None]).to(tl.int32), axis=1)
        token = tl.minimum(block * BLOCK + tl.minimum(entry, BLOCK - 1), width - 1)
        z = tl.load(z_ptr + token, mask=inside, other=0.0).to(tl.float32)
        z = capped(z, cap, CAPPED)
        token = tl.where((total > 0) & (z > float("-inf")), token, y)
        tl.store(token_ptr + place, tl.where(inside, token, -1))
        tl.store(value_ptr + place, z)


@triton.jit
def _draw_misses(
    z_ptr, token_ptr, value_ptr, cdf_ptr, high_ptr, y, low, high, misses,
    width, stride, blocks, steps, scale, cap,
    NUMBERED: tl.constexpr, CAPPED: tl.constexpr, BLOCK: tl.constexpr, DRAWS: tl.constexpr,
    LANES: tl.constexpr, WHICH_BLOCK: tl.constexpr, WHICH_ENTRY: tl.constexpr,
):  # fmt: skip
    """Store the token of each miss, and its z. NUMBERED: not all draws are misses."""
    tl.debug_barrier()
    _draw_blocks(
        token_ptr, value_ptr, cdf_ptr, low, high, misses, blocks, steps,
        NUMBERED, WHICH_BLOCK, WHICH_ENTRY, LANES,
    )  # fmt: skip
    tl.debug_barrier()
    _draw_entries(
        z_ptr, token_ptr, value_ptr, high_ptr, y, misses, width, stride, scale, cap,
        CAPPED, BLOCK, DRAWS,
    )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def _base_share(base_ptr, token, inside, record_ptr, cap, CAPPED: tl.constexpr):
    """Return the base's probabilities of some tokens of a row."""
    z = capped(tl.load(base_ptr + token, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
    shift = tl.load(record_ptr + TOP) * LOG2E
    return tl.exp2(z * LOG2E - shift - tl.load(record_ptr + LSE))


@triton.jit
def _miss_gradients(
    token_ptr, value_ptr, base_ptr, base_record_ptr, y, misses, shift, lse, of_p, of_miss, of_base,
    cap,
    CAPPED: tl.constexpr, LANES: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Replace each miss's z by its logit's gradient; return the sum of the misses' log2 p.

    A token drawn n times has n of `of_miss`; n is counted by comparing with all other misses, which
    reads no more than registers for OTHERS of them at once.
    """
    summed = 0.0
    for start in range(0, misses, LANES):
        place = start + tl.arange(0, LANES)
        inside = place < misses
        token = tl.load(token_ptr + place, mask=inside, other=-1)
        z = tl.load(value_ptr + place, mask=inside, other=0.0)
        count = tl.zeros((LANES,), tl.int32)
        for first in range(0, misses, OTHERS):
            other = tl.load(token_ptr + first + tl.arange(0, OTHERS))  # -1 beyond the misses
            count += tl.sum((other[:, None] == token[None, :]).to(tl.int32), axis=0)
        logp = z * LOG2E - shift - lse
        summed += tl.sum(tl.where(inside & (token != y), logp, 0.0), axis=0)
        p = tl.exp2(logp)
        slope = of_p * p - of_miss * count.to(tl.float32)
        if base_ptr is not None:
            b = _base_share(base_ptr, token, inside, base_record_ptr, cap, CAPPED)
            slope += of_base * (p - b)
        tl.store(value_ptr + place, slope * cap_slope(z, cap, CAPPED), mask=inside)
    return summed


@triton.jit
def _number(numbers_ptr, place):
    """Return the number at a place, 1 if there are none."""
    number = 1.0
    if numbers_ptr is not None:
        number = tl.load(numbers_ptr + place).to(tl.float32)
    return number


# The seed changes with each step, and where a chunk starts within the targets with each chunk.
@triton.jit(
    do_not_specialize=["seed_low", "seed_high"],
    do_not_specialize_on_alignment=["target_ptr", "position_ptr", "weight_ptr", "start_ptr"],
)
def losses(  # noqa: C901, PLR0915 - one program per row, in order
    z_ptr, target_ptr, position_ptr, factor_ptr, weight_ptr, start_ptr, base_ptr, base_record_ptr,
    record_ptr, high_ptr, sum_ptr, cdf_ptr, token_ptr, value_ptr, figures_ptr,
    width, stride, base_stride, blocks, steps, samples, places, seed_low, seed_high,
    inverse_kappa, cap, kl_weight,
    OBJECTIVE: tl.constexpr, FORM: tl.constexpr, WEIGHTED: tl.constexpr, RATIO: tl.constexpr,
    PENALTY: tl.constexpr, ROLLS_OUT: tl.constexpr, HITS: tl.constexpr, DRAWN: tl.constexpr,
    TEMPERED: tl.constexpr, DENSE_Q: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK: tl.constexpr, DRAWS: tl.constexpr, LANES: tl.constexpr,
    OTHERS: tl.constexpr, CDF: tl.constexpr,
    HIT: tl.constexpr, WHICH_BLOCK: tl.constexpr, WHICH_ENTRY: tl.constexpr,
):  # fmt: skip
    """Draw; store each row's figures, coefficients and the gradients of target and misses.

    The gradients are multiplied by the number at `factor_ptr` (None: 1), the figures are not; they
    and the loss by the row's number at `weight_ptr` (None: 1). `start_ptr` has the targets'
    log-probabilities before training, if RATIO. With base logits (None: there are none) and their
    statistics, the gradient, but not yet the loss, has kl_weight KL(base || p), whatever the row's
    weight.
    OBJECTIVE, FORM, WEIGHTED, RATIO: see `coefficients`. PENALTY: something is added to the loss.
    ROLLS_OUT: the hit share without draws is q, else p. HITS: hits are drawn. DRAWN: misses are
    drawn. TEMPERED: q is not p. DENSE_Q: the gradient has a part Q q.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride
    record_ptr += row * RECORD
    token_ptr += row * places
    value_ptr += row * places
    high_ptr += row * blocks
    y = tl.load(target_ptr + row).to(tl.int32)
    z = capped(tl.load(z_ptr + y).to(tl.float32), cap, CAPPED)
    top = tl.load(record_ptr + TOP)
    shift = top * LOG2E
    lse = tl.load(record_ptr + LSE)
    logp = z * LOG2E - shift - lse
    p = tl.exp2(logp)
    tempered = inverse_kappa * LOG2E
    q = p
    if DRAWN:
        cdf_ptr += row * blocks
        sum_ptr += row * blocks
        lse_q = _cumulate_blocks(
            z_ptr, cdf_ptr, high_ptr, sum_ptr, y, top * tempered, width, stride, blocks, tempered,
            cap, CAPPED, BLOCK, CDF,
        )  # fmt: skip
        q = tl.exp2(z * tempered - top * tempered - lse_q)
    elif TEMPERED:
        q = tl.exp2(z * tempered - top * tempered - tl.load(record_ptr + LSE_Q))
    low, high = _row_keys(tl.load(position_ptr + row), seed_low, seed_high)
    share, misses = p, samples
    if ROLLS_OUT:
        share = q
    if HITS:
        hits = _count_hits(token_ptr, low, high, q, samples, DRAWN, HIT, LANES)
        share = hits.to(tl.float32) / samples
        misses = samples - hits
    entropy = (lse - tl.load(record_ptr + MEAN)) * LN2
    log_ratio = 0.0
    if RATIO:
        log_ratio = logp * LN2 - tl.load(start_ptr + row).to(tl.float32)
    of_p, of_q, of_target, of_miss, penalty = coefficients(
        p, logp * LN2, log_ratio, q, share, entropy, top + lse * LN2,
        OBJECTIVE, FORM, WEIGHTED, RATIO,
    )  # fmt: skip
    loss = tl.where(of_target == 0, 0.0, of_target * logp)
    weight = _number(weight_ptr, row)
    factor = weight * _number(factor_ptr, 0)
    slope = of_p * p - of_target
    if DENSE_Q:
        loss += of_q * (tl.load(record_ptr + MEAN_Q) - lse)
        slope -= of_q * q
    of_base = 0.0
    if base_ptr is not None:
        base_ptr += row * base_stride
        base_record_ptr += row * RECORD
        of_base = kl_weight * _number(factor_ptr, 0)
        tl.store(base_record_ptr + OF_P, of_base)
    if DRAWN:
        _draw_misses(
            z_ptr, token_ptr, value_ptr, cdf_ptr, high_ptr, y, low, high, misses,
            width, stride, blocks, steps, tempered, cap,
            HITS, CAPPED, BLOCK, DRAWS, LANES, WHICH_BLOCK, WHICH_ENTRY,
        )  # fmt: skip
        loss += of_miss * _miss_gradients(
            token_ptr, value_ptr, base_ptr, base_record_ptr, y, misses, shift, lse,
            factor * of_p, factor * of_miss, of_base, cap, CAPPED, LANES, OTHERS,
        )  # fmt: skip
        tl.store(record_ptr + MISSES, misses.to(tl.float32))
    # Without a base, not even a 0 is added.
    if base_ptr is None:
        tl.store(record_ptr + OF_P, factor * of_p)
        tl.store(record_ptr + AT_TARGET, factor * slope * cap_slope(z, cap, CAPPED))
    else:
        b = _base_share(base_ptr, y, True, base_record_ptr, cap, CAPPED)
        at_target = factor * slope + of_base * (p - b)
        tl.store(record_ptr + OF_P, factor * of_p + of_base)
        tl.store(record_ptr + AT_TARGET, at_target * cap_slope(z, cap, CAPPED))
    tl.store(record_ptr + OF_Q, factor * of_q)
    rows = tl.num_programs(0)
    loss *= -LN2
    if PENALTY:
        loss += penalty
    tl.store(figures_ptr + row, loss * weight)
    tl.store(figures_ptr + rows + row, logp * -LN2)
    tl.store(figures_ptr + 2 * rows + row, share)
    tl.store(figures_ptr + 3 * rows + row, entropy)
    tl.store(figures_ptr + 4 * rows + row, tl.abs(slope * weight))


@triton.jit(do_not_specialize_on_alignment=["target_ptr"])
def write_(
    z_ptr, target_ptr, token_ptr, value_ptr, record_ptr, part_ptr, figures_ptr, stride, places,
    spans, kl_weight,
    DRAWN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the gradients of target and misses over those that `gradient_` wrote for them.

    With the KL's parts of the row's spans (None: there are none), store the KL, and add it to the
    loss.
    """
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * stride
    record_ptr += row * RECORD
    token_ptr += row * places
    value_ptr += row * places
    y = tl.load(target_ptr + row).to(tl.int32)
    if DRAWN:
        misses = tl.load(record_ptr + MISSES).to(tl.int32)
        for start in range(0, misses, LANES):
            place = start + tl.arange(0, LANES)
            inside = place < misses
            token = tl.load(token_ptr + place, mask=inside, other=0)
            value = tl.load(value_ptr + place, mask=inside, other=0.0)
            value = value.to(z_ptr.dtype.element_ty)
            tl.store(z_ptr + token, value, mask=inside & (token != y))
    at_target = tl.load(record_ptr + AT_TARGET)
    tl.store(z_ptr + y, at_target.to(z_ptr.dtype.element_ty))
    if part_ptr is not None:
        part_ptr += row * spans
        kl = 0.0
        for start in range(0, spans, LANES):
            span = start + tl.arange(0, LANES)
            kl += tl.sum(tl.load(part_ptr + span, mask=span < spans, other=0.0), axis=0)
        kl *= LN2
        rows = tl.num_programs(0)
        figures_ptr += row
        tl.store(figures_ptr + 5 * rows, kl)  # behind the figures of `losses`
        tl.store(figures_ptr, tl.load(figures_ptr) + kl_weight * kl)
