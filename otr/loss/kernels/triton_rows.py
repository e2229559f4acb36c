"""The three kernels of `otr.loss.kernels.rows`: one program per row, all arithmetic in float32.

Names: z is a logit after the soft cap, in places minus the row's largest; p = softmax(z),
q = softmax(z / kappa). Pointers end in _ptr; `width` is the vocabulary, `stride` the distance
between rows in memory.
"""

import triton
import triton.language as tl

# ruff: noqa: PLR0913 - a kernel's arguments are its tensors


@triton.jit
def _capped(z, cap):
    """Return a logit after the soft cap; 0 is none."""
    if cap > 0:
        z = cap * (2 * tl.sigmoid(2 * z / cap) - 1)
    return z


@triton.jit
def _row(z_ptr, row, start, width, stride, cap, SPAN: tl.constexpr):
    """Return SPAN logits of a row from `start` on (-inf beyond its end), and their columns."""
    column = start + tl.arange(0, SPAN)
    address = z_ptr + row.to(tl.int64) * stride + column
    z = tl.load(address, mask=column < width, other=0.0).to(tl.float32)
    return tl.where(column < width, _capped(z, cap), float("-inf")), column


@triton.jit
def statistics(
    z_ptr, target_ptr, top_ptr, lse_ptr, lse_q_ptr, mean_ptr, mean_q_ptr, block_ptr,
    width, stride, blocks, inverse_kappa, cap,
    TEMPERED: tl.constexpr, BLOCKS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store each row's largest logit, log-sum-exps and means under p and q, and blocks' sums."""
    row = tl.program_id(0)
    target = tl.load(target_ptr + row)
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    total_q = tl.full((), 0.0, tl.float32)
    first = tl.full((), 0.0, tl.float32)
    first_q = tl.full((), 0.0, tl.float32)
    for start in range(0, width, SPAN):
        z, column = _row(z_ptr, row, start, width, stride, cap, SPAN)
        if BLOCKS:
            others = tl.where(column == target, float("-inf"), z * inverse_kappa)
            others = tl.reshape(others, (SPAN // BLOCK, BLOCK))
            highest = tl.max(others, axis=1)
            highest = tl.where(highest == float("-inf"), 0.0, highest)
            sums = tl.sum(tl.exp(others - highest[:, None]), axis=1)
            block = start // BLOCK + tl.arange(0, SPAN // BLOCK)
            address = block_ptr + row.to(tl.int64) * blocks + block
            tl.store(address, highest + tl.log(sums), mask=block < blocks)
        before = top
        top = tl.maximum(top, tl.max(z, axis=0))
        shift = tl.where(before == float("-inf"), 0.0, before - top)
        z = z - tl.where(top == float("-inf"), 0.0, top)
        finite = tl.where(z == float("-inf"), 0.0, z)  # -inf * 0 would be NaN
        weight = tl.exp(z)
        kept = tl.exp(shift)
        first = kept * (first + shift * total) + tl.sum(weight * finite, axis=0)
        total = kept * total + tl.sum(weight, axis=0)
        if TEMPERED:
            weight = tl.exp(z * inverse_kappa)
            kept = tl.exp(shift * inverse_kappa)
            first_q = kept * (first_q + shift * total_q) + tl.sum(weight * finite, axis=0)
            total_q = kept * total_q + tl.sum(weight, axis=0)
    tl.store(top_ptr + row, top)
    tl.store(lse_ptr + row, tl.log(total))
    tl.store(mean_ptr + row, first / total)
    if TEMPERED:
        tl.store(lse_q_ptr + row, tl.log(total_q))
        tl.store(mean_q_ptr + row, first_q / total_q)


@triton.jit
def _hash(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _uniform(low, high, draw, word):
    """Compute `otr.loss.draws.uniforms`."""
    key = _hash((draw * 4 + word + 1).to(tl.uint32))
    return (_hash(_hash(low ^ key) + high) >> 8).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def _point(uniform, total):
    """Return uniform * total, always less than the total whatever the rounding."""
    bits = total.to(tl.int32, bitcast=True)
    below = tl.maximum(bits - 1, 0).to(tl.float32, bitcast=True)
    return tl.minimum(uniform * total, below)


@triton.jit
def draw(
    z_ptr, target_ptr, low_ptr, high_ptr, top_ptr, lse_q_ptr, q_ptr, cdf_ptr, hits_ptr, token_ptr,
    width, stride, blocks, samples, inverse_kappa, cap,
    HITS: tl.constexpr, MISSES: tl.constexpr, STEPS: tl.constexpr,
    DRAWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store how many of K draws hit the target, and the drawn tokens (the target for hits)."""
    row = tl.program_id(0)
    target = tl.load(target_ptr + row).to(tl.int32)
    low = tl.load(low_ptr + row).to(tl.uint32, bitcast=True)
    high = tl.load(high_ptr + row).to(tl.uint32, bitcast=True)
    q = tl.load(q_ptr + row)
    shift = tl.load(top_ptr + row) * inverse_kappa + tl.load(lse_q_ptr + row)
    hits = tl.full((), 0, tl.int32)
    for start in range(0, samples, DRAWS):
        k = start + tl.arange(0, DRAWS)
        hit = k < 0
        if HITS:
            hit = (_uniform(low, high, k, 0) < q) & (k < samples)
            hits += tl.sum(hit.to(tl.int32), axis=0)
        if MISSES:
            cdf = cdf_ptr + row.to(tl.int64) * blocks
            point = _point(_uniform(low, high, k, 1), tl.load(cdf + blocks - 1))
            first = tl.zeros((DRAWS,), tl.int32)
            last = first + blocks - 1
            for _ in range(STEPS):
                middle = (first + last) // 2
                above = tl.load(cdf + middle) > point
                first = tl.where(above | (first >= last), first, middle + 1)
                last = tl.where(above, middle, last)
            column = first[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
            address = z_ptr + row.to(tl.int64) * stride + column
            z = _capped(tl.load(address, mask=column < width, other=0.0).to(tl.float32), cap)
            other = (column < width) & (column != target)
            weight = tl.where(other, tl.exp(z * inverse_kappa - shift), 0.0)
            sums = tl.cumsum(weight, axis=1)
            point = _point(_uniform(low, high, k, 2), tl.max(sums, axis=1))
            entry = tl.sum((sums <= point[:, None]).to(tl.int32), axis=1)
            token = tl.minimum(first * BLOCK + tl.minimum(entry, BLOCK - 1), width - 1)
            token = tl.where(hit, target, token)
            tl.store(token_ptr + row.to(tl.int64) * samples + k, token, mask=k < samples)
    if HITS:
        tl.store(hits_ptr + row, hits)


@triton.jit
def gradient_(
    z_ptr, top_ptr, lse_ptr, lse_q_ptr, p_ptr, q_ptr, width, stride, inverse_kappa, cap,
    DENSE_Q: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Replace the logits by P p - Q q times the slope of the soft cap."""
    row = tl.program_id(0)
    z, column = _row(z_ptr, row, tl.program_id(1) * SPAN, width, stride, cap, SPAN)
    shifted = z - tl.load(top_ptr + row)
    slope = tl.load(p_ptr + row) * tl.exp(shifted - tl.load(lse_ptr + row))
    if DENSE_Q:
        q = tl.exp(shifted * inverse_kappa - tl.load(lse_q_ptr + row))
        slope -= tl.load(q_ptr + row) * q
    if cap > 0:
        slope *= 1 - (z / cap) * (z / cap)
    address = z_ptr + row.to(tl.int64) * stride + column
    tl.store(address, slope.to(z_ptr.dtype.element_ty), mask=column < width)
