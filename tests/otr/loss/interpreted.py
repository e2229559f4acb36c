"""The Triton backend in Triton's interpreter; `test_triton.py` runs this file with pytest."""

import pytest
import torch

from otr import Objective, linear_token_loss
from otr.loss.kernels.rows import loss_and_gradient_ as triton_loss_and_gradient_
from otr.loss.rows import loss_and_gradient_
from tests.assets.rows import OBJECTIVES, logits_and_targets

# The interpreter computes with numpy, which warns about the log of a masked block's 0.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [1, 7, 100, 5000])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_triton_backend_equals_the_torch_backend(
    objective: Objective,
    vocabulary: int,
    softcap: float | None,
) -> None:
    logits_CV, target_C = logits_and_targets(6, vocabulary)
    ours, theirs = logits_CV.clone(), logits_CV.clone()
    arguments = (target_C, torch.arange(6) * 1_000_003, objective, 1234567890123, softcap)
    figures = triton_loss_and_gradient_(ours, *arguments)
    torch.testing.assert_close(
        figures, loss_and_gradient_(theirs, *arguments), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_each_entry_is_rounded_once() -> None:
    logits_CV, target_C = logits_and_targets(6, 3000)
    objective = Objective(num_samples=200, mismatch_reward=-1.0)
    ours, exact = logits_CV.bfloat16(), logits_CV.bfloat16().float()
    arguments = (target_C, torch.arange(6), objective, 7)
    triton_loss_and_gradient_(ours, *arguments)
    loss_and_gradient_(exact, *arguments)
    torch.testing.assert_close(ours, exact.bfloat16(), rtol=2**-7, atol=1e-7)


def test_linear_token_loss_accepts_the_backend_by_name() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    weight = torch.randn(90, 8)
    outputs = [
        linear_token_loss(
            hidden,
            weight,
            torch.arange(5),
            Objective(num_samples=9),
            generator=torch.Generator().manual_seed(3),
            backend=backend,
        ).loss_sum
        for backend in ("triton", "torch")
    ]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in outputs))
