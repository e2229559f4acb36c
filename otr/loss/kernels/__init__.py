"""Triton kernels for devices on which torch's own operations are too slow."""

import os
from importlib.util import find_spec

import torch


def available(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device: on CUDA, or interpreted on any device."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return find_spec("triton") is not None and (device.type == "cuda" or interpreted)
