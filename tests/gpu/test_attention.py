"""Flash attention of packed examples equals each example on its own, in bfloat16 on a GPU."""

import pytest
import torch

from otr.models.attention import Lengths, no_mask, packed_attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LENGTHS = [37, 5, 130, 1]


@pytest.mark.parametrize("window", [None, 16])
def test_flash_equals_one_example_at_a_time(window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(LENGTHS)
    q, k, v = (
        torch.randn(1, heads, total, 64, device="cuda", requires_grad=True) for heads in (8, 2, 2)
    )
    outs, slopes = [], []
    for dtype in (torch.bfloat16, torch.float32):  # float32 uses one SDPA call per example
        out, _ = packed_attention(
            torch.nn.Module(),
            *(x.to(dtype) for x in (q, k, v)),
            no_mask(q.device),
            lengths=Lengths(LENGTHS),
            sliding_window=window,
        )
        outs.append(out.float())
        slopes.append(torch.autograd.grad(out.float().square().sum(), (q, k, v)))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=3e-2)
    for ours, wanted in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=5e-2, atol=0.2)
