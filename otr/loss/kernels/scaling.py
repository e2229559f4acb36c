"""Multiplying a tensor by a number that is on the GPU, without reading it on the host."""

import triton
import triton.language as tl
from torch import Tensor

SPAN = 8192  # numbers that a program multiplies


def multiply_(numbers: Tensor, factor: Tensor) -> None:
    """Multiply by a number on the same device, in float32; if it is 1, nothing is read or written.

    Args:
        numbers: float32 or a smaller float dtype, without gaps in memory.
        factor: 0-dimensional.
    """
    multiply_kernel_[(triton.cdiv(numbers.numel(), SPAN),)](numbers, factor, numbers.numel(), SPAN)


@triton.jit
def multiply_kernel_(x_ptr, factor_ptr, count, SPAN: tl.constexpr):
    """Multiply SPAN of `count` numbers, unless the factor is 1."""
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        place = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
        x = tl.load(x_ptr + place, mask=place < count, other=0.0).to(tl.float32) * factor
        tl.store(x_ptr + place, x.to(x_ptr.dtype.element_ty), mask=place < count)
