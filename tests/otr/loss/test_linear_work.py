"""`linear_token_loss` holds no tensor of all logits and does only the necessary work."""

import pytest
import torch
from torch import Tensor

from otr import Objective, linear_token_loss
from otr._compat import TorchDispatchMode
from otr.loss import rows
from otr.loss.fused import _largest_chunk
from tests.otr.loss.losses import MANY, SAMPLED, Elsewhere, Inputs


class Operations(TorchDispatchMode):
    """Records operations by the shape of what they return, and the largest storage among that."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.names: dict[tuple[int, ...], list[str]] = {}
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
                self.names.setdefault(tuple(tensor.shape), []).append(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "matmul"):
            self.products.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("objective", MANY.values(), ids=MANY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_all_logits(dtype, objective: Objective, chunks) -> None:
    """Nothing is larger than a chunk of logits or the weight in float32."""
    x = Inputs(t=2048, v=4096, d=16, dtype=dtype)
    chunks(x, 128, 8)
    with Operations() as ran:
        x.loss(objective).loss_sum.backward()
    limit = max(128 * 4096 * x.weight.element_size(), 4 * x.weight.numel())
    assert 0 < ran.largest <= limit < 2048 * 4096 * x.weight.element_size() / 8


def test_draws_from_a_small_vocabulary_need_no_large_scratch() -> None:
    x = Inputs(t=4096, v=40, dtype=torch.float32)
    with Operations() as ran:
        x.loss(Objective()).loss_sum.backward()
    assert ran.largest <= rows.TILE_BYTES


def test_only_the_necessary_products_run(chunks) -> None:
    for frozen, wanted in (
        ((), {"logits": 3, "hidden": 3, "weight": 3}),
        (("weight",), {"logits": 3, "hidden": 3}),
        (("hidden",), {"logits": 3, "weight": 3}),
        (("hidden", "weight"), {"logits": 3}),
        (("all",), {"logits": 3}),
    ):
        x = Inputs()
        chunks(x, 4, 4)
        for name in frozen:
            if name != "all":
                getattr(x, name).requires_grad_(False)
        with torch.set_grad_enabled("all" not in frozen), Operations() as ran:
            out = x.loss(SAMPLED)
            if out.loss_sum.requires_grad:
                out.loss_sum.backward()
        kinds = {29: "logits", 8: "hidden"}
        counts = {}
        for shape in ran.products:
            kind = "weight" if shape == (29, 8) else kinds[shape[1]]
            counts[kind] = counts.get(kind, 0) + 1
        assert counts == wanted


VIEWS = ("t", "detach", "slice", "split", "as_strided")


def test_the_weights_gradient_is_written_by_products_alone(chunks) -> None:
    """Neither filled with zeros before them nor multiplied by the factor after them."""
    x = Inputs()
    chunks(x, 4, 4)
    with Operations() as ran:
        x.loss(SAMPLED, factor=0.5).loss_sum.backward()
    assert len(x.target[x.target >= 0]) > 8  # three chunks
    assert [name for name in ran.names[29, 8] if name not in VIEWS] == [
        "mm",
        "addmm_",
        "addmm_",
    ]


def test_rows_of_logits_are_aligned_in_memory_for_any_vocabulary(monkeypatch) -> None:
    strides = []

    def backend(logits_CV: Tensor, *arguments) -> Tensor:
        strides.append(logits_CV.stride())
        return rows.loss_and_gradient_(logits_CV, *arguments)

    monkeypatch.setattr("otr.loss.functional.loss_and_gradient_", backend)
    for vocabulary in (1, 29, 64, 130):
        Inputs(v=vocabulary).loss(SAMPLED)
    assert strides == [(64, 1), (64, 1), (64, 1), (192, 1)]


@pytest.mark.parametrize(
    ("free", "size"),
    [
        (100 * 2**30, 3 * 2**30),
        (6 * 2**30, 3 * 2**30),
        (5 * 2**30, 1536 * 2**20),
        (2**30, 384 * 2**20),
        (0, 48 * 2**20),
    ],
)
def test_a_gpus_chunk_is_at_most_half_of_its_free_memory(free: int, size: int) -> None:
    assert _largest_chunk(free) == size


H, W, Y = torch.zeros(4, 3), torch.zeros(9, 3), torch.zeros(4).long()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_VD": torch.zeros(9, 2)}, r"hidden \(4, 3\) and weight \(9, 2\): use .* same D"),
        ({"weight_VD": torch.zeros(9)}, r"hidden \(4, 3\) and weight \(9,\): use \[T, D\]"),
        ({"hidden_TD": torch.zeros(2, 2, 3)}, r"hidden \(2, 2, 3\) and weight"),
        ({"weight_VD": W.bfloat16()}, "hidden is torch.float32, weight torch.bfloat16: use"),
        ({"hidden_TD": H.long(), "weight_VD": W.long()}, "hidden is torch.int64"),
        ({"target_T": torch.tensor([0, 9, 1, 2])}, "target 9 in row 1: use 0 to 8 or -100"),
        ({"target_T": Y[:3]}, r"target is \(3,\): use \[4\]"),
        ({"target_T": Y.int()}, "target is torch.int32: use int64"),
        ({"position_T": Y[:2]}, r"position is \(2,\): use \[4\]"),
        ({"scored_S": Y[:2].int()}, r"scored is torch.int32 \(2,\): use int64"),
        ({"scored_S": torch.zeros(4, 1).long()}, r"scored is torch.int64 \(4, 1\): use"),
        ({"factor": torch.ones(4)}, r"factor is \(4,\): use a number"),
        ({"bias": torch.zeros(8)}, r"bias is \(8,\): use \[9\]"),
        ({"softcap": 0.0}, "softcap is 0.0: use a number > 0"),
        ({"softcap": -5.0}, "softcap is -5.0: use a number > 0"),
        ({"generator": Elsewhere()}, "generator is on cuda:1: use the CPU or cpu"),
        ({"backend": "cuda"}, "backend 'cuda': use 'torch', 'triton' or None"),
    ],
)
def test_bad_arguments_are_named_before_any_product(change: dict, words: str) -> None:
    good = {"hidden_TD": H, "weight_VD": W, "target_T": Y, "objective": SAMPLED}
    with Operations() as ran:
        linear_token_loss(**good)
    assert ran.products
    with (
        Operations() as ran,
        pytest.raises((ValueError, TypeError), match=words),
    ):
        linear_token_loss(**good | change)
    assert not ran.products
