"""Random draws from a counter, so that a token's draws do not depend on how it is batched.

Uniforms are a pure function of (seed, position, number of the draw, word); tokens are drawn with
them in two stages, a block of the vocabulary and then an entry within it.

Shapes: T rows (one per position), K draws per row, M draws of any rows, V vocabulary, B blocks of
E = BLOCK vocabulary entries.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # vocabulary entries per block
SMALL = 4096  # largest vocabulary for which all cumulative sums are computed
HIT, WHICH_BLOCK, WHICH_ENTRY = 0, 1, 2  # words: the independent uniforms of a draw


class RowKeys(NamedTuple):
    """Two int32 words per row that stand for (seed, position)."""

    low: Int[Tensor, "*rows"]
    high: Int[Tensor, "*rows"]


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw a 63-bit seed; advances `generator` (None: torch's default generator)."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def uniforms(
    keys: RowKeys,
    draw: Int[Tensor, "*draws"],
    *,
    word: int,
) -> Float[Tensor, "*drawn"]:
    """Return float32 uniforms in [0, 1) with 24 bits, a function of (seed, position, draw, word).

    Each is two rounds of a 32-bit integer hash ("lowbias32", C. Wellons, hash-prospector) of the
    row's 64-bit key and the draw's number.

    Args:
        keys: of the rows; broadcast with `draw`.
        draw: numbers of the draws.
        word: which of the independent uniforms of a draw.
    """
    low, high = keys
    mixed = low ^ _hash_(draw.int() * 4 + word + 1)
    _hash_(_hash_(mixed).add_(high))
    return _shift(mixed, 8, out=mixed).float().mul_(2.0**-24)


def row_keys(seed: int, position_T: Int[Tensor, " T"]) -> RowKeys:
    """Return the keys of rows at the given positions."""
    low_T = _hash_(_int32(position_T) ^ signed(seed))
    high_T = _hash_(_int32(position_T >> 32) ^ signed(seed >> 32) ^ low_T)
    return RowKeys(low_T, high_T)


def draw_each(
    weight_TV: Float[Tensor, "T V"], block_TK: Float[Tensor, "T K"], entry_TK: Float[Tensor, "T K"]
) -> Int[Tensor, "T K"]:
    """Draw K tokens per row in proportion to `weight_TV`.

    The first uniform chooses a block by the blocks' sums, the second an entry within it. So a draw
    reads V / BLOCK + BLOCK weights instead of V, and no row is sorted. Entries of weight 0 are
    never drawn, unless all are 0.

    Args:
        weight_TV: weights >= 0, not necessarily normalized.
        block_TK: uniforms that choose a block.
        entry_TK: uniforms that choose an entry.
    """
    rows, vocabulary = weight_TV.shape
    if vocabulary <= SMALL:
        row_T1 = torch.arange(rows, device=weight_TV.device)[:, None]
        flat = (tensor.reshape(-1) for tensor in (row_T1.expand_as(block_TK), block_TK, entry_TK))
        return draw_some(weight_TV, *flat).view_as(block_TK)
    weight_BE, row_blocks = _blocks(weight_TV)
    cdf_TB = weight_BE.sum(-1).view(rows, row_blocks).cumsum(-1)
    block_TK = torch.searchsorted(cdf_TB, _points(cdf_TB[:, -1:], block_TK), right=True)
    block_TK.clamp_(max=row_blocks - 1)  # the last if all weights are 0
    index_TK = block_TK + row_blocks * torch.arange(rows, device=block_TK.device)[:, None]
    cdf_ME = weight_BE.index_select(0, index_TK.view(-1)).cumsum(-1)
    point_M1 = _points(cdf_ME[:, -1:], entry_TK.reshape(-1, 1))
    entry_TK = torch.searchsorted(cdf_ME, point_M1, right=True).view_as(block_TK)
    return (block_TK * BLOCK + entry_TK.clamp_(max=BLOCK - 1)).clamp_(max=vocabulary - 1)


def draw_some(
    weight_TV: Float[Tensor, "T V"],
    row_M: Int[Tensor, " M"],
    block_M: Float[Tensor, " M"],
    entry_M: Float[Tensor, " M"],
) -> Int[Tensor, " M"]:
    """Draw one token for each of `row_M` as `draw_each` does, for vocabularies up to SMALL."""
    rows, vocabulary = weight_TV.shape
    weight_BE, row_blocks = _blocks(weight_TV)
    cdf_BE = weight_BE.cumsum(-1)
    block_M = _bisect(cdf_BE[:, -1].view(rows, row_blocks).cumsum(-1), row_M, block_M)
    entry_M = _bisect(cdf_BE, row_M * row_blocks + block_M, entry_M)
    return (block_M * BLOCK + entry_M).clamp_(max=vocabulary - 1)


def _blocks(weight_TV: Tensor) -> tuple[Tensor, int]:
    """Return the blocks of all rows [B, E], and the number of blocks per row."""
    if missing := -weight_TV.shape[1] % BLOCK:
        weight_TV = torch.nn.functional.pad(weight_TV, (0, missing))
    return weight_TV.reshape(-1, BLOCK), weight_TV.shape[1] // BLOCK


def _points(total: Tensor, uniform: Tensor) -> Tensor:
    """Return uniform * total, always less than the total whatever the rounding."""
    return torch.minimum(
        uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total))
    )


def _bisect(cdf_RN: Tensor, row_M: Tensor, uniform_M: Tensor) -> Tensor:
    """Return the first index at which a draw's row of cumulative sums exceeds its point.

    For many draws from few entries `torch.searchsorted` takes twice as long, since its branches
    cannot be predicted.
    """
    last = cdf_RN.shape[1] - 1
    point_M = _points(cdf_RN[:, -1].index_select(0, row_M), uniform_M)
    width = 1 << last.bit_length()
    if missing := width - 1 - last:
        cdf_RN = torch.nn.functional.pad(cdf_RN, (0, missing), value=torch.inf)
    cdf, first_M = cdf_RN.reshape(-1), row_M * width
    if len(cdf) < 2**31:
        first_M = first_M.int()  # halves the memory traffic
    last_M = first_M - 1  # last entry known not to exceed the point
    step = width // 2
    while step:
        last_M.add_(cdf.index_select(0, last_M + step) <= point_M, alpha=step)
        step //= 2
    return (last_M - first_M + 1).clamp_(max=last).long()  # the last if all weights are 0


def _hash_(x: Tensor) -> Tensor:
    """Hash in place: allocating memory for each operation would take most of the time."""
    spare = torch.empty_like(x)
    x.bitwise_xor_(_shift(x, 16, out=spare)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shift(x, 15, out=spare)).mul_(signed(0x846CA68B))
    return x.bitwise_xor_(_shift(x, 16, out=spare))


def _shift(x: Tensor, bits: int, *, out: Tensor) -> Tensor:
    """Shift right logically; torch's own shift is arithmetic."""
    return torch.bitwise_right_shift(x, bits, out=out).bitwise_and_((1 << (32 - bits)) - 1)


def signed(value: int) -> int:
    """Return the low 32 bits as a signed number, for int32 arithmetic."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _int32(x: Tensor) -> Tensor:
    """Return the low 32 bits of int64 numbers as int32."""
    return ((x + 2**31) & 0xFFFFFFFF).sub(2**31).to(torch.int32)
