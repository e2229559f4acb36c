"""`linear_token_loss` holds no tensor of all logits and does only the necessary work."""

import pytest
import torch
from torch import Tensor

from otr import Objective, linear_token_loss
from otr._compat import TorchDispatchMode
from otr.loss import rows
from tests.otr.loss.losses import MANY, SAMPLED, Elsewhere, Inputs


class Operations(TorchDispatchMode):
    """Records matrix products, and the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[tuple[int, ...]] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
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
