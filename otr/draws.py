"""Uniform numbers from a counter, so that a token's draws do not depend on how it is batched.

In: a seed, the counters of T rows, a number of draws K. Out: float32 [T, K] in [0, 1).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
    low_T = _hash(_int32(position_T) ^ _signed(seed))
    high_T = _hash(_int32(position_T >> 32) ^ _signed(seed >> 32) ^ low_T)
    draw_K = torch.arange(num_draws, dtype=torch.int32, device=position_T.device)
    draw_K = _hash(draw_K * 4 + word + 1)
    bits_TK = _hash(_hash(low_T[:, None] ^ draw_K) + high_T[:, None])
    return _shift(bits_TK, 8).float() * 2.0**-24


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
