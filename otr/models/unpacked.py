"""Computing the examples of packed rows one by one, for models that mix packed examples up.

State-space and convolution layers, for instance, carry what they have seen from one example of a
packed row to the next. Such a model gets each example in a row of its own. Examples are sorted by
their lengths, so that rows that are computed together need little padding, which is at their ends:
a causal model's tokens do not see it.

Shapes: N tokens of all examples, E examples that are computed together, L tokens of the longest of
them, D width.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from otr.models.structure import trunk

_FLAG = "otr_is_unpacked"  # attribute of a transformers model


def set_unpacked(model: PreTrainedModel, unpacked: bool) -> None:
    """Let `otr.models.parts.hidden_states` compute a model's examples one by one, or packed."""
    setattr(model, _FLAG, unpacked)


def is_unpacked(model: PreTrainedModel) -> bool:
    """Return whether a model's examples are computed one by one."""
    return getattr(model, _FLAG, False)


def unpacked_states(
    model: PreTrainedModel, ids_N: Int[Tensor, " N"], lengths: Sequence[int], most_tokens: int
) -> Float[Tensor, "N D"]:
    """Return the hidden states of examples that follow each other in one long row.

    Args:
        model: without adapters around it.
        ids_N: token ids.
        lengths: tokens of each example.
        most_tokens: tokens that are computed at once, padding included; one example may have more.
    """
    examples = ids_N.split(list(lengths))
    groups = list(_groups(lengths, most_tokens))
    states: list[Tensor] = []
    for group in groups:
        found_ELD = _last_states(model, pad_sequence([examples[n] for n in group], True))
        states += [found_ELD[i, : len(examples[n])] for i, n in enumerate(group)]
    order = [n for group in groups for n in group]
    in_order = [state for _, state in sorted(zip(order, states, strict=True), key=lambda p: p[0])]
    unused = ids_N.new_zeros(1, 1)
    extra = [_last_states(model, unused)[0, :0] for _ in range(_passes(model, groups))]
    return torch.cat([*in_order, *extra])


def _last_states(model: PreTrainedModel, ids_EL: Int[Tensor, "E L"]) -> Float[Tensor, "E L D"]:
    return trunk(model)(input_ids=ids_EL, use_cache=False).last_hidden_state


def _groups(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of examples that are computed together, longest examples first."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if group and lengths[group[0]] * (len(group) + 1) > most_tokens:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _passes(model: PreTrainedModel, groups: Sequence[object]) -> int:
    """Return the forward passes that a rank must add: under FSDP all ranks take as many.

    A rank without any token takes one, since the others wait for its part of the gradients.
    """
    most = max(1, len(groups))
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        number = torch.tensor(most, device=model.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        most = int(number)
    return most - len(groups)
