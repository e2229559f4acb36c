"""Private interfaces of torch and transformers, all in this module.

Each entry gives its reason and its upstream source; tests/otr/test_compat.py fails if one is gone
or behaves differently. Nothing is imported before it is used.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otr._lazy import lazy_names

if TYPE_CHECKING:
    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn import Module
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map_with_path
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FakeTensorMode", "TorchDispatchMode", "tree_leaves", "tree_map_with_path"]

_MODULES = {
    # Tensors with shapes and no contents, to count a step's memory before there is a device.
    # Asked for as a public interface in https://github.com/pytorch/pytorch/issues/113456
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    # Sees every operation of a step; torch's documentation of `__torch_dispatch__` points to it,
    # but the module is private (torch/utils/_python_dispatch.py, torch 2.13).
    "TorchDispatchMode": "torch.utils._python_dispatch",
    # Nested containers of tensors: results of operations, and the optimizer's state with paths.
    # Asked for as a public interface in https://github.com/pytorch/pytorch/issues/65761
    "tree_leaves": "torch.utils._pytree",
    "tree_map_with_path": "torch.utils._pytree",
}
__getattr__ = lazy_names(__name__, _MODULES)


def storage_key(tensor: "Tensor") -> int:
    """Return the address of a tensor's storage, which also identifies storages of fake tensors.

    `data_ptr`, the public way, is 0 for all of them (`_cdata` in torch/storage.py, torch 2.13).
    """
    return tensor.untyped_storage()._cdata


def reads_number(operation: Any) -> bool:
    """Return whether a dispatched operation copies a tensor's value to Python, as `item` does.

    The operation has no public name (torch/_subclasses/fake_impls.py treats it the same way).
    """
    import torch

    return operation is torch.ops.aten._local_scalar_dense.default


def shard_rank(path: Path) -> int:
    """Return the rank that wrote a `.distcp` file of torch's distributed checkpoint.

    Each rank lists the checksums of its own files, and the writer does not report their names. They
    are `__RANK_NUMBER.distcp`: `_StoragePrefix` in torch/distributed/checkpoint/filesystem.py,
    torch 2.13.
    """
    return int(path.name.split("_")[2])


_LOST_PEER = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|[Tt]imed? ?out|ncclRemoteError|ncclSystemError"
    "|ncclInProgress|communicator was aborted"
)


def is_lost_peer(error: BaseException) -> bool:
    """Return whether a process of the process group could not be reached any more.

    Only errors of torch.distributed itself count. Its store has types for it. NCCL has one type for
    all its errors, and gloo a plain RuntimeError that begins with its source file, so that their
    text decides (torch/csrc/distributed/c10d/exception.h, third_party/gloo/gloo/transport/tcp,
    torch 2.13).
    """
    import torch.distributed as dist

    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        return True
    gloo = type(error) is RuntimeError and re.match(r"\[\S*/gloo/transport/", str(error))
    backend = isinstance(error, dist.DistBackendError)
    return bool((gloo or backend) and _LOST_PEER.search(str(error)))


def attention_name(config: "PretrainedConfig") -> str:
    """Return the attention implementation that a model's config selects.

    Setting it is public (`set_attn_implementation`), reading it is not:
    https://github.com/huggingface/transformers/pull/38974
    """
    return str(config._attn_implementation)


def can_set_attention(model: "PreTrainedModel") -> bool:
    """Return whether `set_attn_implementation` changes the attention of this model.

    Without this question it only logs a warning for models that ignore it:
    https://github.com/huggingface/transformers/pull/38974
    """
    return model._can_set_attn_implementation()


def supports_attention_interface(model: "PreTrainedModel") -> bool:
    """Return whether a model passes unknown keywords of its forward pass to its attention function.

    A flag of the model's class: https://github.com/huggingface/transformers/pull/37576
    """
    return model._supports_attention_backend


def supports_sdpa(model: "PreTrainedModel") -> bool:
    """Return whether SDPA computes a model's attention; attention sinks, for example, prevent it.

    A flag of the model's class (transformers/modeling_utils.py, transformers 5.23).
    """
    return model._supports_sdpa


def ignored_when_saved(model: "PreTrainedModel") -> frozenset[str]:
    """Return the names of tensors that `save_pretrained` leaves out.

    An attribute of the model's class (transformers/modeling_utils.py, transformers 5.23).
    """
    return frozenset(model._keys_to_ignore_on_save or ())


def weight_conversions(model: "PreTrainedModel") -> Any:
    """Return how the tensors of the files that a model was loaded from became its own.

    None for a model that was not loaded. `from_pretrained` notes it for `save_pretrained`
    (transformers/core_model_loading.py, transformers 5.23).
    """
    return getattr(model, "_weight_conversions", None)


def stored_tensors(
    model: "PreTrainedModel", tensors: "dict[str, Tensor]", conversions: Any
) -> "dict[str, Tensor]":
    """Return some of a model's tensors as `save_pretrained` stores them.

    `save_pretrained` converts all at once, which takes the whole model in memory. There is no
    public way to convert a part (`revert_weight_conversion` in transformers/core_model_loading.py,
    transformers 5.23).

    Args:
        model: on a rank without the weights it may not have been loaded from files.
        tensors: by their names in the model.
        conversions: result of `weight_conversions` for the model that was loaded.
    """
    from transformers.core_model_loading import revert_weight_conversion

    if conversions is not None:
        model._weight_conversions = conversions
    return dict(revert_weight_conversion(model, tensors))


def uses_plain_backend(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a fast tokenizer gives exactly the token ids of its Rust backend.

    The backend's `encode_batch_fast` saves a quarter of the time, since it computes no offsets; a
    subclass with a `__call__` or `_encode_plus` of its own (transformers/tokenization_utils_base.py
    and tokenization_utils_tokenizers.py, transformers 5.23) may change the text or the ids.
    """
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    return (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind.__call__ is PreTrainedTokenizerFast.__call__
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    )


@contextmanager
def adapters_off(model: "Module") -> Iterator[None]:
    """Compute without peft's adapters meanwhile, and with the original of modules saved as a whole.

    The public `PeftModel.disable_adapter` also freezes the adapters and thaws them afterwards.
    FSDP2 reads once, in its first forward pass, which parameters are trained, and would find none
    (`_disable_adapters` in peft/tuners/tuners_utils.py and peft/utils/other.py, peft 0.21).
    """
    layers = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]  # not a module
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def prepare_4bit(layer: "Module") -> None:
    """Make bitsandbytes' Linear4bit compute as a linear layer does, on every device.

    On CPUs with AVX512-BF16, its first pass in eval mode replaces the weight by another layout,
    whose kernel rounds to bfloat16 whatever the input. Under autocast it returns the data type of
    its input, where a linear layer returns autocast's; without a `compute_dtype` it keeps the first
    one it meets (`Linear4bit.forward` in bitsandbytes/nn/modules.py, 0.50).
    """
    vars(layer).update(
        support_avx512bf16_for_cpu=False, compute_dtype=None, compute_type_is_set=True
    )
    layer.register_forward_pre_hook(_autocast_input)


def _autocast_input(layer: "Module", inputs: "tuple[Tensor, ...]") -> "tuple[Tensor, ...]":
    import torch

    kind = inputs[0].device.type
    if not torch.is_autocast_enabled(kind):
        return inputs
    return inputs[0].to(torch.get_autocast_dtype(kind)), *inputs[1:]
