"""Random draws from a counter, so that a token's draws do not depend on how it is batched.

In: a seed, the counters of T rows, a number of draws K. Out: float32 uniforms [T, K] in [0, 1), and
draws of token ids [T, K].

Shapes: T rows, K draws, V vocabulary, N blocks of BLOCK vocabulary entries.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # vocabulary entries whose weights are summed before one of them is drawn
FEW = 16  # vocabulary entries a draw, up to which all sums cost less than those of the drawn blocks
HIT, WHICH_BLOCK, WHICH_ENTRY = 0, 1, 2  # the words of a draw


def draw_seed(generator: torch.Generator | None) -> int:
    """One 63-bit seed; advances `generator` (None: torch's default one)."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def uniforms(
    seed: int, position_T: Int[Tensor, " T"], num_draws: int, *, word: int
) -> Float[Tensor, "T K"]:
    """Uniforms of 24 bits, a pure function of (seed, position, draw, word).

    `word` numbers independent uniforms of one draw. Each is two rounds of a 32-bit integer hash
    ("lowbias32", C. Wellons, hash-prospector) over a 64-bit key of the row and the draw's number.
    """
    low_T, high_T = row_keys(seed, position_T)
    draw_K = torch.arange(num_draws, dtype=torch.int32, device=position_T.device)
    draw_K = _hash(draw_K * 4 + word + 1)
    bits_TK = _hash(_hash(low_T[:, None] ^ draw_K) + high_T[:, None])
    return _shift(bits_TK, 8).float() * 2.0**-24


def row_keys(
    seed: int, position_T: Int[Tensor, " T"]
) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
    """The two int32 words that stand for (seed, position)."""
    low_T = _hash(_int32(position_T) ^ _signed(seed))
    high_T = _hash(_int32(position_T >> 32) ^ _signed(seed >> 32) ^ low_T)
    return low_T, high_T


def draw_tokens(
    weight_TV: Float[Tensor, "T V"], block_TK: Float[Tensor, "T K"], entry_TK: Float[Tensor, "T K"]
) -> Int[Tensor, "T K"]:
    """K draws a row in proportion to `weight_TV`, from two uniforms each.

    The first picks a block of BLOCK entries by the blocks' sums, the second an entry in it; so a
    draw reads N + BLOCK weights instead of V, and no row is sorted. Entries of weight 0 are never
    drawn, unless all are 0.
    """
    rows, vocabulary = weight_TV.shape
    if missing := -vocabulary % BLOCK:
        weight_TV = torch.nn.functional.pad(weight_TV, (0, missing))
    weight_TNB = weight_TV.view(rows, weight_TV.shape[1] // BLOCK, BLOCK)
    block_TK = _invert(weight_TNB.sum(-1).cumsum(-1), block_TK)
    if weight_TV.shape[1] <= FEW * entry_TK.shape[1]:
        return _invert_all(weight_TNB, block_TK, entry_TK).clamp_(max=vocabulary - 1)
    inside_TKB = weight_TNB.gather(1, block_TK[:, :, None].expand(-1, -1, BLOCK))
    entry_TK = _invert(inside_TKB.cumsum(-1), entry_TK[:, :, None]).squeeze(-1)
    return (block_TK * BLOCK + entry_TK).clamp_(max=vocabulary - 1)


def _invert_all(weight_TNB: Tensor, block_TK: Tensor, uniform_TK: Tensor) -> Tensor:
    """The same entries, found in the sums of all blocks one after another.

    In float64, so that a block's sums keep their order behind those of the blocks before.
    """
    cdf_TNB = weight_TNB.cumsum(-1)
    total_TN = cdf_TNB[..., -1]
    total_TK = total_TN.gather(1, block_TK)
    point_TK = _point(uniform_TK, total_TK).double()
    before_TN = total_TN.double().cumsum(-1) - total_TN.double()
    cdf_TV = (before_TN[..., None] + cdf_TNB).flatten(1)
    point_TK += before_TN.gather(1, block_TK)
    return torch.searchsorted(cdf_TV, point_TK, right=True)


def _point(uniform: Tensor, total: Tensor) -> Tensor:
    """That share of a total, and always less than it."""
    below = torch.nextafter(total, torch.zeros_like(total))  # rounding must not reach the total
    return torch.minimum(uniform.to(total.dtype) * total, below)


def _invert(cdf: Tensor, uniform: Tensor) -> Tensor:
    """Index of the first entry at which a cumulative sum [..., N] is above its share [..., K]."""
    point = _point(uniform, cdf[..., -1:])
    return torch.searchsorted(cdf, point, right=True).clamp_(max=cdf.shape[-1] - 1)


def _hash(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 16)) * 0x7FEB352D
    x = (x ^ _shift(x, 15)) * _signed(0x846CA68B)
    return x ^ _shift(x, 16)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _signed(value: int) -> int:
    """The low 32 bits as a signed number, as int32 arithmetic wants it."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _int32(x: Tensor) -> Tensor:
    """The low 32 bits of int64, kept by wrapping."""
    return ((x + 2**31) & 0xFFFFFFFF).sub(2**31).to(torch.int32)
