"""The Triton backend in Triton's interpreter; `test_triton.py` runs this file with pytest."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from otr import IGNORE_INDEX, Objective, linear_token_loss
from otr._compat import TorchDispatchMode
from otr.loss.draws import BLOCK
from otr.loss.kernels import rows
from otr.loss.kernels.rows import loss_and_gradient_ as triton_loss_and_gradient_
from otr.loss.kernels.scaling import multiply_
from otr.loss.rows import FIGURES, Compared, loss_and_gradient_
from tests.assets.rows import OBJECTIVES, logits_and_targets

KERNELS = ("statistics", "losses", "gradient_", "write_")
NO_WORK = ("empty", "new_empty", "slice", "select", "as_strided")  # memory and views of it
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "_unique2")

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
    more = {"compared": Compared(start_of(logits_CV, target_C))}
    figures = triton_loss_and_gradient_(ours, *arguments, **more)
    torch.testing.assert_close(
        figures, loss_and_gradient_(theirs, *arguments, **more), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def start_of(logits_CV: Tensor, target_C: Tensor) -> Tensor:
    """Return log-probabilities before training, from half of what they are to twice that."""
    logp_C = torch.log_softmax(logits_CV, -1).gather(1, target_C[:, None])[:, 0]
    return logp_C + torch.linspace(-0.7, 0.7, len(target_C))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("vocabulary", [7, 5000])
@pytest.mark.parametrize("objective", [*OBJECTIVES[:3], OBJECTIVES[5], OBJECTIVES[8]], ids=str)
def test_the_kl_to_a_base_equals_the_torch_backends(
    objective: Objective, vocabulary: int, softcap: float | None
) -> None:
    """With weights, which do not multiply it, and memory behind the rows of the base."""
    logits_CV, target_C = logits_and_targets(6, vocabulary)
    base_CV = torch.full((6, vocabulary + 9), torch.nan)[:, :vocabulary]
    noise = torch.randn(6, vocabulary, generator=torch.Generator().manual_seed(1))
    base_CV.copy_(logits_CV + noise)
    ours, theirs = logits_CV.clone(), logits_CV.clone()
    weight_C = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 1.0])
    arguments = (target_C, torch.arange(6), objective, 3, softcap, torch.tensor(0.5), weight_C)
    compared = Compared(start_of(logits_CV, target_C), base_CV, 0.3)
    figures = triton_loss_and_gradient_(ours, *arguments, compared)
    wanted = loss_and_gradient_(theirs, *arguments, compared)
    torch.testing.assert_close(figures, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(figures) == FIGURES + 1 and figures[FIGURES].min() > 0


def test_in_bfloat16_each_entry_is_rounded_once() -> None:
    logits_CV, target_C = logits_and_targets(6, 3000)
    objective = Objective(num_samples=200, mismatch_reward=-1.0)
    ours, exact = logits_CV.bfloat16(), logits_CV.bfloat16().float()
    arguments = (target_C, torch.arange(6), objective, 7)
    triton_loss_and_gradient_(ours, *arguments)
    loss_and_gradient_(exact, *arguments)
    torch.testing.assert_close(ours, exact.bfloat16(), rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize("num_samples", [1, 257, 1024])
@pytest.mark.parametrize("estimator", ["sampled", "half"])
def test_many_draws_with_repeated_tokens(estimator: str, num_samples: int) -> None:
    """A few tokens are drawn hundreds of times; 257 is one more than a program's lanes."""
    logits_CV, target_C = logits_and_targets(2, 300)
    logits_CV[:, 0] = logits_CV.amax(1)  # what places without a draw would look like
    objective = Objective(num_samples=num_samples, estimator=estimator)
    ours, theirs = logits_CV.clone(), logits_CV.clone()
    arguments = (target_C, torch.arange(2), objective, 99)
    figures = triton_loss_and_gradient_(ours, *arguments)
    torch.testing.assert_close(
        figures, loss_and_gradient_(theirs, *arguments), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_rows_with_padding_in_memory_a_factor_and_weights(objective: Objective) -> None:
    """What is beyond the vocabulary is neither used nor overwritten."""
    logits_CV, target_C = logits_and_targets(5, 2100)
    padded = torch.full((5, 2112), torch.nan)
    padded[:, :2100] = logits_CV
    factor = torch.tensor(-0.25)
    weight_C = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    arguments = (target_C, torch.arange(5), objective, 3)
    more = {"weight_C": weight_C, "compared": Compared(start_of(logits_CV, target_C))}
    figures = triton_loss_and_gradient_(padded[:, :2100], *arguments, factor=factor, **more)
    wanted = loss_and_gradient_(logits_CV, *arguments, **more)
    torch.testing.assert_close(figures, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(padded[:, :2100], logits_CV * factor, rtol=1e-5, atol=1e-6)
    assert padded[:, 2100:].isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_bad_logit_shows_in_the_nll_of_its_row_alone(objective: Objective, value: float) -> None:
    logits_CV, target_C = logits_and_targets(3, 500)
    logits_CV[1, 400] = value
    compared = Compared(torch.full((3,), -1.0))
    nll_C = triton_loss_and_gradient_(
        logits_CV, target_C, torch.arange(3), objective, 1, compared=compared
    )[1]
    assert nll_C.isfinite().tolist() == [True, False, True]


class Work(TorchDispatchMode):
    """Counts kernels and torch's operations, and what the kernels read and write of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.read = self.written = 0
        self.logits: Tensor | None = None
        self.in_kernel = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not self.in_kernel and name not in NO_WORK:
            self.operations[name] += 1
            if name == "index" and any(i.dtype == torch.bool for i in args[1] if i is not None):
                self.operations["nonzero"] += 1
        return func(*args, **(kwargs or {}))

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **more: Any) -> None:
        self.kernels[kernel.__name__] += 1
        self.in_kernel = True
        kernel[grid](*args, **more)
        self.in_kernel = False

    def touched(self, address: Any, mask: Any) -> int:
        if self.logits is None:
            return 0
        first = self.logits.data_ptr()
        inside = (address.data >= first) & (address.data < first + self.logits.nbytes)
        return int((inside & mask.data).sum())


class Launcher:
    """Stands before a kernel of `otr.loss.kernels.rows`."""

    def __init__(self, kernel: Any, work: Work) -> None:
        self.kernel, self.work = kernel, work

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **more: self.work.launch(self.kernel, grid, *args, **more)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    counted = Work()
    for name in KERNELS:
        monkeypatch.setattr(rows, name, Launcher(getattr(rows, name), counted))
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def counting_load(address, mask, *rest):
        counted.read += counted.touched(address, mask)
        return load(address, mask, *rest)

    def counting_store(address, value, mask, *rest):
        counted.written += counted.touched(address, mask)
        return store(address, value, mask, *rest)

    monkeypatch.setattr(interpreter_builder, "create_masked_load", counting_load)
    monkeypatch.setattr(interpreter_builder, "create_masked_store", counting_store)
    yield counted


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_chunk_is_four_launches_two_reads_and_one_write(objective: Objective, work: Work) -> None:
    """Beside the passes, target and draws touch a block of logits each."""
    logits_CV, target_C = logits_and_targets(3, 5000)
    position_C, work.logits = torch.arange(3), logits_CV
    compared = Compared(torch.full((3,), -1.0))
    with work:
        rows.loss_and_gradient_(
            logits_CV, target_C, position_C, objective, 8, 5.0, compared=compared
        )
    assert sum(work.kernels.values()) <= 4
    assert not work.operations
    few = 3 * (1 + (objective.num_samples if objective.draws_misses else 0))
    assert 2 * 15000 <= work.read <= 2 * 15000 + few * (BLOCK + 1)
    assert 15000 <= work.written <= 15000 + few


@pytest.mark.parametrize("objective", [OBJECTIVES[0], OBJECTIVES[2], OBJECTIVES[5]], ids=str)
def test_the_forward_pass_never_waits_for_the_device(objective: Objective, work: Work) -> None:
    target = torch.tensor([3, IGNORE_INDEX, 70, 5])
    hidden, weight = torch.randn(4, 8), torch.randn(90, 8, requires_grad=True)
    scored = torch.tensor([0, 2, 3])
    with work:
        out = linear_token_loss(
            hidden, weight, target, objective,
            generator=torch.Generator().manual_seed(3), scored_S=scored, factor=0.5,
            check=False, backend="triton",
        )  # fmt: skip
    waits = {name: n for name, n in work.operations.items() if name in WAITS}
    drawn = objective.draws_hits or objective.draws_misses
    assert waits == ({"_local_scalar_dense": 1} if drawn else {})  # the seed, which is on the CPU
    torch.testing.assert_close(
        out.loss_sum,
        0.5
        * linear_token_loss(
            hidden, weight, target, objective, generator=torch.Generator().manual_seed(3)
        ).loss_sum,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_on_the_device_multiplies_and_one_touches_nothing(dtype, work: Work) -> None:
    numbers = torch.randn(70, 150).to(dtype)
    wanted = (numbers.float() * (1 / 3)).to(dtype)
    work.logits = numbers
    multiply_(numbers, torch.tensor(1.0))
    assert work.read == work.written == 0
    multiply_(numbers, torch.tensor(1 / 3))
    assert work.read == work.written == numbers.numel()
    # The interpreter rounds bfloat16 towards 0.
    torch.testing.assert_close(
        numbers, wanted, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0
    )


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
