"""Checks that a model computes what training assumes, on a few dozen made-up tokens.

`load_model` chooses how a model computes packed examples. A run checks its model once more before
the first step, on its device, before the model is wrapped, sharded or compiled. A model that fails
would train without an error, but on other logits or with examples that see each other.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from otr._compat import attention_name, can_set_attention, supports_sdpa
from otr.models.layout import Layout
from otr.models.parts import head, hidden_states
from otr.models.structure import trunk, without_adapters
from otr.models.unpacked import set_unpacked

LENGTHS = (24, 17)
"""Tokens of the two made-up examples."""
PADDING = 8
"""Tokens of padding after them: enough for both to be computed together when not packed."""
WINDOW = 6
"""Size that sliding windows are set to during the checks, shorter than both examples."""


def check_head(model: PreTrainedModel) -> None:
    """Check that `head` computes the model's own logits from its hidden states.

    Raises:
        ValueError: the logits differ, since the model does something else to them.
    """
    model = without_adapters(model)
    ids_1S = _ids(model)[None, : LENGTHS[0]]
    with _quiet(model), _attention(model, "eager"):
        ours_NV = head(model).logits(hidden_states(model, ids_1S, _as_one(ids_1S)))
        theirs_NV = model(input_ids=ids_1S, use_cache=False).logits[0].float()
    gap = _gap(ours_NV, theirs_NV)
    if not gap <= _tolerance(model):
        raise ValueError(
            f"models of type {model.config.model_type} are not supported: their logits are not "
            f"those of the head alone (off by {gap:.1e})"
        )


def choose_computation(model: PreTrainedModel, *, attention: str) -> None:
    """Choose how the examples of a packed row are kept apart, and set the model to it.

    The first of these ways is taken in which two examples get the hidden states that each has on
    its own with the model's eager attention: packed with the attention that is set, packed with
    SDPA, each example in a row of its own (`otr.models.unpacked`), and the same with eager
    attention. If none is right, nothing changes, and `check_packing` fails.

    Args:
        model: with its weights.
        attention: `ModelConfig.attention`; one that was asked for stays.
    """
    ways = [(None, False), ("sdpa", False), (None, True), ("eager", True)]
    before = attention_name(model.config)
    with _quiet(model), _narrow(model):
        for name, unpacked in ways:
            if name and (attention != "auto" or not _has_attention(model, name)):
                continue
            model.set_attn_implementation(name or before)
            set_unpacked(model, unpacked)
            if not _packing_error(model):
                return
    model.set_attn_implementation(before)
    set_unpacked(model, False)


def check_packing(model: PreTrainedModel) -> None:
    """Check that two examples in a packed row get the same hidden states as each on its own.

    A model for which this is so only with each example in a row of its own is set to that.

    Raises:
        ValueError: the hidden states differ.
    """
    model = without_adapters(model)
    with _quiet(model), _narrow(model):
        if not _packing_error(model):
            return
        set_unpacked(model, True)
        found = _packing_error(model)
    if found:
        raise ValueError(
            f"models of type {model.config.model_type} are not supported: examples come out wrong "
            f"({found})"
        )


def sample_logits(model: PreTrainedModel) -> Float[Tensor, "N V"]:
    """Return the logits of the made-up tokens, as one example."""
    model = without_adapters(model)
    ids_1N = _ids(model)[None]
    with _quiet(model):
        return head(model).logits(hidden_states(model, ids_1N, _as_one(ids_1N)))


def check_merged(model: PreTrainedModel, adapted_NV: Float[Tensor, "N V"]) -> None:
    """Check that a merged model has the logits of the model with an adapter.

    Args:
        model: the merged model, in the precision of `adapted_NV`.
        adapted_NV: `sample_logits` before the merge.

    Raises:
        ValueError: the logits differ by more than rounding.
    """
    gap = _gap(sample_logits(model), adapted_NV)
    if not gap <= _tolerance(model):
        raise ValueError(
            f"the merged {model.config.model_type} model is not the model with the adapter: its "
            f"logits are off by {gap:.1e}"
        )


def _packing_error(model: PreTrainedModel) -> str:
    """Return what is wrong with the two examples in one padded row; empty if nothing is.

    The reference of each example on its own uses the model's eager attention.
    """
    ids_N = _ids(model)
    with _attention(model, "eager"):
        alone_ND = torch.cat([_alone(model, part) for part in ids_N.split(LENGTHS)])
    segments = [number for number, length in enumerate(LENGTHS, 1) for _ in range(length)]
    segment_ids_1S = torch.tensor([[*segments, *[0] * PADDING]], device=ids_N.device)
    ids_1S = torch.cat([ids_N, ids_N[:PADDING]])[None]
    try:
        packed_ND = hidden_states(model, ids_1S, Layout.of(segment_ids_1S))
    except (TypeError, ValueError) as error:  # the model rejects positions or this attention
        return str(error).split("\n")[0]
    gap = _gap(packed_ND, alone_ND)
    return "" if gap <= _tolerance(model) else f"off by {gap:.1e}"


def _alone(model: PreTrainedModel, ids_N: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    return trunk(model)(input_ids=ids_N[None], use_cache=False).last_hidden_state[0]


def _as_one(ids_BS: Int[Tensor, "B S"]) -> Layout:
    """Return the layout of rows that hold one example each."""
    return Layout.of(torch.ones_like(ids_BS))


def _ids(model: PreTrainedModel) -> Int[Tensor, " N"]:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return (torch.arange(sum(LENGTHS), device=weight.device) * 7919 + 11) % len(weight)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of a token's vectors, relative to the vector's norm."""
    ours, theirs = ours.float(), theirs.float()
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


def _tolerance(model: PreTrainedModel) -> float:
    rounded = torch.is_autocast_enabled(model.device.type) or model.dtype != torch.float32
    return 5e-2 if rounded else 1e-4


@contextmanager
def _quiet(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout and gradients off."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Use another attention implementation, in models that can change it."""
    before = attention_name(model.config)
    can = _has_attention(model, name)
    if can:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if can:
            model.set_attn_implementation(before)


def _has_attention(model: PreTrainedModel, name: str) -> bool:
    return can_set_attention(model) and (name != "sdpa" or supports_sdpa(model))


@contextmanager
def _narrow(model: PreTrainedModel) -> Iterator[None]:
    """Shrink sliding windows and attention chunks to WINDOW, wherever the model stores them."""
    holders: list[Any] = [model.config.get_text_config(), *model.modules()]
    found = [
        (holder, name, value)
        for holder in holders
        for name in ("sliding_window", "attention_chunk_size")
        if isinstance(value := getattr(holder, name, None), int) and value > WINDOW
    ]
    for holder, name, _ in found:
        setattr(holder, name, WINDOW)
    try:
        yield
    finally:
        for holder, name, value in found:
            setattr(holder, name, value)
