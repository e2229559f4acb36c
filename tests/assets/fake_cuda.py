"""An optimizer step on a GPU that is not there: ``python -m tests.assets.fake_cuda GUARD FAMILY``.

The step is the loop's own, on torch's fake tensors with the device "cuda", which have a shape and a
dtype, but no contents. Only the backward pass is left out, since autograd needs a real
device. Prints as JSON what a GPU would have been asked: calls of flash attention with their
dtypes, operations on tensors of two devices, and where the host would have waited.

GUARD is the shared library of fake_cuda_guard.cpp.
"""

import ctypes
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import AutoModelForCausalLM

from otr.config import DataConfig, MemoryConfig, ModelConfig, TrainConfig
from otr.loop import loop, parallel
from otr.loop.policy import Policy
from otr.loss import functional, fused
from otr.loss.objective import Objective
from otr.loss.rows import FIGURES
from otr.models.attention import PACKED, register
from otr.optim import make_optimizer
from tests.otr.models.families import MODELS, packed_rows

CUDA = torch.device("cuda", 0)
MICRO_BATCHES = 2
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal"}


class Spy(TorchDispatchMode):
    """Has operations on the GPU computed with fake tensors, and watches them.

    Operations in host memory are real.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.attention: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = [x for x in given if x.is_cuda]
        if on_gpu and name in _WAITS:
            self.waits[f"{name} {_place()}"] += 1
        if on_gpu and name == "_local_scalar_dense":
            return 1
        if on_gpu and name in ("index", "index_put_") and _has_mask(args[1]):
            self.waits[f"{name} by a mask {_place()}"] += 1
        kwargs = kwargs or {}
        wanted = torch.device(kwargs.get("device") or "cpu")
        if on_gpu or wanted.type == "cuda":
            with self.fake:
                found = func(*tree_map(self._faked, args), **tree_map(self._faked, kwargs))
        else:
            found = func(*args, **kwargs)
        if on_gpu and name in ("_to_copy", "copy_") and not found.is_cuda:
            self.waits[f"copy to the host {_place()}"] += 1
        devices = {x.device.type for x in given if x.dim()}
        if len(devices) > 1 and name not in ("_to_copy", "copy_"):
            self.mixed[f"{name} {_place()}"] += 1
        if "varlen" in name:
            dtypes = {str(x.dtype).removeprefix("torch.") for x in given[:3]}
            self.attention[f"{name} {'/'.join(sorted(dtypes))}"] += 1
        return found

    def _faked(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.fake.from_tensor(value) if real else value


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _place() -> str:
    """Return the innermost place in the project's own code."""
    frame: Any = sys._getframe()
    while frame and "/otr/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def step(family: str) -> dict[str, Any]:
    """Take a step of a family's toy in bfloat16; return what `Spy` has seen, as JSON."""
    register()
    config = TrainConfig(
        ModelConfig("none", dtype="bfloat16"),
        DataConfig(("none",)),
        Objective(),
        memory=MemoryConfig("single"),
        global_batch_size=2 * MICRO_BATCHES,
        micro_batch_size=2,
    )
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(
            MODELS[family].config(), dtype=torch.float32, attn_implementation=PACKED
        )
    rows = packed_rows()
    micro = [{name: column[:2] for name, column in rows.items()}] * MICRO_BATCHES
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        _to_gpu(model)
    policy = Policy(model.train(), config.objective)
    optimizer = make_optimizer(policy, config.optim)
    run = loop._Run(policy, optimizer, config, loop.Hooks())
    with Spy(fake) as spy:
        loop._step(run, micro, 0, 1e-5, saves=False)
    return {"attention": spy.attention, "mixed": spy.mixed, "waits": spy.waits}


def _to_gpu(model: nn.Module) -> None:
    """Replace tensors on the meta device by fake ones on the GPU; give parameters gradients."""
    made: dict[Tensor, Tensor] = {}  # ties stay ties
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if old not in made:
                    made[old] = torch.empty(old.shape, dtype=old.dtype, device=CUDA)
                    if isinstance(old, nn.Parameter):
                        made[old] = nn.Parameter(made[old])
                        made[old].grad = torch.empty_like(made[old])
                held[name] = made[old]


def _rows(logits_CV: Tensor, *_: Any, **__: Any) -> Tensor:
    """Stand in for the kernels, which fake tensors can't be given."""
    return logits_CV.new_empty(FIGURES, len(logits_CV), dtype=torch.float32)


def main() -> None:
    """Print what the step of one family has asked of the GPU."""
    warnings.filterwarnings("ignore")
    ctypes.CDLL(sys.argv[1])
    with (
        patch("torch.cuda.is_available", lambda: True),
        patch("torch.cuda.current_device", lambda: 0),
        patch("torch.cuda._lazy_init", lambda: None),
        patch("torch.cuda.is_bf16_supported", lambda *_: True),
        patch.object(Tensor, "pin_memory", lambda tensor: tensor),
        patch.object(Tensor, "backward", lambda tensor: None),
        patch.object(Tensor, "tolist", _read),
        patch.object(functional, "_backend", lambda *_: _rows),
        patch.object(fused, "_chunk_bytes", lambda *_: 2**20),
    ):
        print(json.dumps({family: step(family) for family in sys.argv[2:]}))


def _read(tensor: Tensor, tolist: Any = Tensor.tolist) -> list[float]:
    """Return numbers for those of a tensor on the GPU, for which the host waits."""
    return [1.0] * len(tensor.cpu()) if tensor.is_cuda else tolist(tensor)


if __name__ == "__main__":
    assert parallel.world_size() == 1
    main()
