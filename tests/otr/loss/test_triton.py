"""The mathematics of the Triton kernels, without a GPU in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from otr import Objective, linear_token_loss


@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
def test_the_kernels_in_the_interpreter() -> None:
    """A process of its own is needed: Triton reads the variable at import."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", Path(__file__).with_name("interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_triton_is_refused_without_a_gpu_or_the_interpreter() -> None:
    with pytest.raises(ValueError, match="backend 'triton' can't run on cpu: use 'torch'"):
        linear_token_loss(
            torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1).long(), Objective("sft"),
            backend="triton",
        )  # fmt: skip
