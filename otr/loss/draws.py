"""Random draws from a counter, so that a token's draws do not depend on how it is batched.

In: a seed, the counters of T rows, numbers of draws. Out: float32 uniforms in [0, 1), and token ids
drawn with them.

Shapes: T rows, M draws of any of them, V vocabulary, B blocks of E = BLOCK vocabulary entries.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # vocabulary entries whose weights are summed before one of them is drawn
SMALL = 4096  # vocabulary up to which all entries are summed up, and only the misses are drawn
HIT, WHICH_BLOCK, WHICH_ENTRY = 0, 1, 2  # the words of a draw


def draw_seed(generator: torch.Generator | None) -> int:
    """One 63-bit seed; advances `generator` (None: torch's default one)."""
    device = None if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def uniforms(
    keys: tuple[Int[Tensor, "*rows"], Int[Tensor, "*rows"]],
    draw: Int[Tensor, "*draws"],
    *,
    word: int,
) -> Float[Tensor, "*drawn"]:
    """Uniforms of 24 bits, a pure function of (seed, position, draw, word).

    `keys` are those of the rows (`row_keys`), `draw` the numbers of the draws; one is broadcast
    over the other. `word` numbers independent uniforms of one draw. Each is two rounds of a 32-bit
    integer hash ("lowbias32", C. Wellons, hash-prospector) over the row's 64-bit key and the
    draw's number.
    """
    low, high = keys
    mixed = low ^ _hash_(draw.int() * 4 + word + 1)
    _hash_(_hash_(mixed).add_(high))
    return _shift(mixed, 8, out=mixed).float().mul_(2.0**-24)


def row_keys(
    seed: int, position_T: Int[Tensor, " T"]
) -> tuple[Int[Tensor, " T"], Int[Tensor, " T"]]:
    """The two int32 words that stand for (seed, position)."""
    low_T = _hash_(_int32(position_T) ^ _signed(seed))
    high_T = _hash_(_int32(position_T >> 32) ^ _signed(seed >> 32) ^ low_T)
    return low_T, high_T


def draw_each(
    weight_TV: Float[Tensor, "T V"], block_TK: Float[Tensor, "T K"], entry_TK: Float[Tensor, "T K"]
) -> Int[Tensor, "T K"]:
    """K draws of every row in proportion to `weight_TV`, each from two uniforms.

    The first picks a block of BLOCK entries by the blocks' sums, the second an entry in it; so a
    draw reads V / BLOCK + BLOCK weights instead of V, and no row is sorted. Entries of weight 0 are
    never drawn, unless all are 0.
    """
    rows, vocabulary = weight_TV.shape
    if vocabulary <= SMALL:
        row_T1 = torch.arange(rows, device=weight_TV.device)[:, None]
        flat = (tensor.reshape(-1) for tensor in (row_T1.expand_as(block_TK), block_TK, entry_TK))
        return draw_some(weight_TV, *flat).view_as(block_TK)
    weight_BE, each_row = _blocks(weight_TV)
    cdf_TB = weight_BE.sum(-1).view(rows, each_row).cumsum(-1)
    block_TK = torch.searchsorted(cdf_TB, _points(cdf_TB[:, -1:], block_TK), right=True)
    block_TK.clamp_(max=each_row - 1)  # the last where all weights are 0
    place_TK = block_TK + each_row * torch.arange(rows, device=block_TK.device)[:, None]
    cdf_ME = weight_BE.index_select(0, place_TK.view(-1)).cumsum(-1)
    point_M1 = _points(cdf_ME[:, -1:], entry_TK.reshape(-1, 1))
    entry_TK = torch.searchsorted(cdf_ME, point_M1, right=True).view_as(block_TK)
    return (block_TK * BLOCK + entry_TK.clamp_(max=BLOCK - 1)).clamp_(max=vocabulary - 1)


def draw_some(
    weight_TV: Float[Tensor, "T V"],
    row_M: Int[Tensor, " M"],
    block_M: Float[Tensor, " M"],
    entry_M: Float[Tensor, " M"],
) -> Int[Tensor, " M"]:
    """As `draw_each`, a draw of each of `row_M`, from a vocabulary of up to SMALL entries."""
    rows, vocabulary = weight_TV.shape
    weight_BE, each_row = _blocks(weight_TV)
    cdf_BE = weight_BE.cumsum(-1)
    block_M = _bisect(cdf_BE[:, -1].view(rows, each_row).cumsum(-1), row_M, block_M)
    entry_M = _bisect(cdf_BE, row_M * each_row + block_M, entry_M)
    return (block_M * BLOCK + entry_M).clamp_(max=vocabulary - 1)


def _blocks(weight_TV: Tensor) -> tuple[Tensor, int]:
    """The blocks of all rows [B, E], and how many a row has."""
    if missing := -weight_TV.shape[1] % BLOCK:
        weight_TV = torch.nn.functional.pad(weight_TV, (0, missing))
    return weight_TV.reshape(-1, BLOCK), weight_TV.shape[1] // BLOCK


def _points(total: Tensor, uniform: Tensor) -> Tensor:
    """The share of a total that a uniform stands for; never the total."""
    return torch.minimum(
        uniform.to(total.dtype) * total, torch.nextafter(total, torch.zeros_like(total))
    )


def _bisect(cdf_RN: Tensor, row_M: Tensor, uniform_M: Tensor) -> Tensor:
    """Index of the first entry at which the cumulative sum of a draw's row is above its share.

    For many draws from few entries `torch.searchsorted` takes twice as long: its branches can't be
    foreseen.
    """
    last = cdf_RN.shape[1] - 1
    point_M = _points(cdf_RN[:, -1].index_select(0, row_M), uniform_M)
    width = 1 << last.bit_length()
    if missing := width - 1 - last:
        cdf_RN = torch.nn.functional.pad(cdf_RN, (0, missing), value=torch.inf)
    cdf, first_M = cdf_RN.reshape(-1), row_M * width
    if len(cdf) < 2**31:
        first_M = first_M.int()  # half of what is read and written
    last_M = first_M - 1  # the last entry that is known not to be above the point
    step = width // 2
    while step:
        last_M.add_(cdf.index_select(0, last_M + step) <= point_M, alpha=step)
        step //= 2
    return (last_M - first_M + 1).clamp_(max=last).long()  # the last where all weights are 0


def _hash_(x: Tensor) -> Tensor:
    """In the place of `x`: new memory for each step would take most of the time."""
    spare = torch.empty_like(x)
    x.bitwise_xor_(_shift(x, 16, out=spare)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shift(x, 15, out=spare)).mul_(_signed(0x846CA68B))
    return x.bitwise_xor_(_shift(x, 16, out=spare))


def _shift(x: Tensor, bits: int, *, out: Tensor) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return torch.bitwise_right_shift(x, bits, out=out).bitwise_and_((1 << (32 - bits)) - 1)


def _signed(value: int) -> int:
    """The low 32 bits as a signed number, as int32 arithmetic wants it."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def _int32(x: Tensor) -> Tensor:
    """The low 32 bits of int64, kept by wrapping."""
    return ((x + 2**31) & 0xFFFFFFFF).sub(2**31).to(torch.int32)
