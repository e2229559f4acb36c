"""Training that computes the same bits again, also on a GPU.

Of what training does on a GPU, only the backward pass of flash attention adds up in an order that
changes from one time to the next.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def determinism(on: bool) -> Iterator[None]:
    """Have torch compute deterministically meanwhile, as `TrainConfig.deterministic` asks."""
    before = torch.are_deterministic_algorithms_enabled()
    if on:
        # torch asks for this on a GPU; cuBLAS reads it before its first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Every chunk of logits would be filled with NaN before it is computed.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
