"""Whether a model computes what training takes for granted, seen on a few dozen made-up tokens.

In: a model on its device, before it is wrapped, sharded or compiled. Out: nothing, or a ValueError
with the remedy. A run looks once, before its first step: a model that fails would train, only on
other logits or with examples that see each other.

Shapes: S row length, N tokens that are no padding, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from otr._compat import attention_name, can_set_attention, supports_sdpa
from otr.models.parts import head, hidden_states, without_adapters

LENGTHS = (24, 17)
"""Tokens of the two examples."""
WINDOW = 6
"""What a sliding window is set to, so that it is shorter than they are."""


def check_head(model: PreTrainedModel) -> None:
    """See that `head` makes the model's own logits of its hidden states.

    Raises:
        ValueError: it does not: the model does something else to them.
    """
    model = without_adapters(model)
    ids_1S = _ids(model)[None, : LENGTHS[0]]
    with _quiet(model), _attention(model, "eager"):
        ours_NV = head(model).logits(hidden_states(model, ids_1S, torch.ones_like(ids_1S)))
        theirs_NV = model(input_ids=ids_1S, use_cache=False).logits[0].float()
    gap = _gap(ours_NV, theirs_NV)
    if not gap <= _tolerance(model):
        raise ValueError(
            f"the logits of a {model.config.model_type} model are not those of its head alone "
            f"(off by {gap:.1e}): such models are not supported"
        )


def check_packing(model: PreTrainedModel) -> None:
    """See that two examples in a row give the same hidden states as each on its own.

    The one on its own goes through the model's eager attention.

    Raises:
        ValueError: they don't; says which `--train.model.attention` would, if one does.
    """
    model = without_adapters(model)
    with _quiet(model), _narrow(model):
        ids_N = _ids(model)
        with _attention(model, "eager"):
            alone_ND = torch.cat([_alone(model, part) for part in ids_N.split(LENGTHS)])
        found = _packing_error(model, ids_N, alone_ND)
        if not found:
            return
        for other in ("sdpa", "eager"):
            with _attention(model, other):
                if not _packing_error(model, ids_N, alone_ND):
                    raise ValueError(
                        f"packed examples come out wrong of this {model.config.model_type} model "
                        f"({found}): use --train.model.attention {other}"
                    )
    raise ValueError(
        f"models of type {model.config.model_type} are not supported: with several examples in a "
        f"row the later ones come out wrong ({found})"
    )


def _packing_error(
    model: PreTrainedModel, ids_N: Int[Tensor, " N"], alone_ND: Float[Tensor, "N D"]
) -> str:
    """What is wrong with the two in one row that ends with padding; empty if nothing is."""
    segments = [number for number, length in enumerate(LENGTHS, 1) for _ in range(length)]
    segment_ids_1S = torch.tensor([[*segments, 0, 0]], device=ids_N.device)
    try:
        packed_ND = hidden_states(model, torch.cat([ids_N, ids_N[:2]])[None], segment_ids_1S)
    except (TypeError, ValueError) as error:  # it takes no positions, or not this attention
        return str(error).split("\n")[0]
    gap = _gap(packed_ND, alone_ND)
    return "" if gap <= _tolerance(model) else f"off by {gap:.1e}"


def _alone(model: PreTrainedModel, ids_N: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    return model.base_model(input_ids=ids_N[None], use_cache=False).last_hidden_state[0]


def _ids(model: PreTrainedModel) -> Int[Tensor, " N"]:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return (torch.arange(sum(LENGTHS), device=weight.device) * 7919 + 11) % len(weight)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a token's vectors, as a share of its length."""
    ours, theirs = ours.float(), theirs.float()
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()


def _tolerance(model: PreTrainedModel) -> float:
    rounded = torch.is_autocast_enabled(model.device.type) or model.dtype != torch.float32
    return 5e-2 if rounded else 1e-4


@contextmanager
def _quiet(model: PreTrainedModel) -> Iterator[None]:
    """No dropout, no gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The attention `name`, in models that can change it."""
    before = attention_name(model.config)
    can = can_set_attention(model) and (name != "sdpa" or supports_sdpa(model))
    if can:
        model.set_attn_implementation(name)
    try:
        yield
    finally:
        if can:
            model.set_attn_implementation(before)


@contextmanager
def _narrow(model: PreTrainedModel) -> Iterator[None]:
    """Windows and chunks of WINDOW tokens: some attend through a mask, some by a number."""
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
