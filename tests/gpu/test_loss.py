"""The Triton backend equals the torch backend on a GPU, at the sizes of real training."""

import pytest
import torch

from otr import IGNORE_INDEX, LossOutput, Objective, linear_token_loss, token_loss
from otr.loss.rows import loss_and_gradient_
from tests.assets.rows import OBJECTIVES, logits_and_targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [1, 7, 1000, 50257, 151936])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_triton_backend_equals_the_torch_backend(
    objective: Objective, vocabulary: int, softcap: float | None
) -> None:
    from otr.loss.kernels.rows import loss_and_gradient_ as triton_loss_and_gradient_

    logits_CV, target_C = (t.cuda() for t in logits_and_targets(24, vocabulary))
    ours, theirs = logits_CV.clone(), logits_CV.clone()
    arguments = (target_C, torch.arange(24).cuda() * 1_000_003, objective, 1234567890123, softcap)
    figures, wanted = (
        triton_loss_and_gradient_(ours, *arguments),
        loss_and_gradient_(theirs, *arguments),
    )
    drawn_alike = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-6).all(1)
    assert (
        drawn_alike.float().mean() > 0.9
    )  # rounding may change a draw at the border of two tokens
    assert torch.allclose(figures[:, drawn_alike], wanted[:, drawn_alike], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_bfloat16_over_several_chunks(
    objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with `token_loss` of the same bfloat16 logits, with a vocabulary of 32,000."""
    torch.manual_seed(0)
    monkeypatch.setattr("otr.loss.fused._chunk_bytes", lambda *_: 2 * 32000 * 100)
    hidden = torch.randn(777, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.2 * torch.randn(32000, 256, device="cuda")).bfloat16().requires_grad_()
    target = torch.randint(32000, (777,), device="cuda")
    target[::10] = IGNORE_INDEX

    def run(plain: bool) -> tuple[LossOutput, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        if plain:
            out = token_loss(hidden @ weight.T, target, objective, generator=generator)
        else:
            out = linear_token_loss(hidden, weight, target, objective, generator=generator)
        return out, *torch.autograd.grad(out.loss_sum, (hidden, weight))

    (ours, *slopes), (plain, *wanted) = run(False), run(True)
    for name in ("loss_sum", "nll_sum", "reward_sum", "hit_sum", "entropy_sum"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-3, atol=1e-2)
    for slope, want in zip(slopes, wanted, strict=True):
        error = (slope - want).float().norm() / want.float().norm().clamp(min=1e-6)
        assert error < 0.02


def test_a_training_step_under_autocast_holds_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("otr.loss.fused._chunk_bytes", lambda *_: 384 * 2**20)
    rows, width, vocabulary = 4096, 256, 151936
    hidden = torch.randn(rows, width, device="cuda", requires_grad=True)
    weight = (0.1 * torch.randn(vocabulary, width, device="cuda")).requires_grad_()
    target = torch.randint(vocabulary, (rows,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16):
        linear_token_loss(hidden, weight, target, Objective()).loss_sum.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert weight.grad.isfinite().all() and hidden.grad is not None
    peak = torch.cuda.max_memory_allocated() - before - 4 * vocabulary * width
    assert peak < 0.9 * 2 * rows * vocabulary  # less than bfloat16 logits of all rows alone


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_host_never_waits(objective: Objective) -> None:
    hidden = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50257, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(50257, (300,), device="cuda")
    scored = torch.arange(300, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for scale in (1.0, 0.5):
            out = linear_token_loss(
                hidden, weight, target, objective, scored_S=scored, factor=1 / 300,
                generator=torch.Generator().manual_seed(3),
            )  # fmt: skip
            (out.loss_sum * scale).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize("num_samples", [256, 1024])
def test_tokens_drawn_many_times(num_samples: int) -> None:
    from otr.loss.kernels.rows import loss_and_gradient_ as triton_loss_and_gradient_

    logits_CV, target_C = (t.cuda() for t in logits_and_targets(64, 300))
    ours, theirs = logits_CV.clone(), logits_CV.clone()
    arguments = (target_C, torch.arange(64).cuda(), Objective(num_samples=num_samples), 7)
    triton_loss_and_gradient_(ours, *arguments)
    loss_and_gradient_(theirs, *arguments)
    alike = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-5).all(1)
    assert alike.float().mean() > 0.8  # rounding may change a draw at the border of two tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_on_the_gpu_multiplies_with_one_rounding(dtype: torch.dtype) -> None:
    from otr.loss.kernels.scaling import multiply_

    numbers = torch.randn(1000, 777, device="cuda").to(dtype)
    wanted = (numbers.float() * (1 / 3)).to(dtype)
    multiply_(numbers, torch.tensor(1 / 3, device="cuda"))
    torch.testing.assert_close(numbers, wanted, rtol=0, atol=0)
