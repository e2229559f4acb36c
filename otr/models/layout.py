"""Where the examples of packed rows are.

What a forward pass needs to know of them as numbers (how many tokens there are, where examples end)
is computed on the host, from columns that are still there: a GPU would have to be waited for.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
E number of examples plus one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; the host does not wait until a GPU has it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # from other memory a copy waits for the GPU
    return tensor.to(device, non_blocking=True)


class Lengths:
    """Lengths of the examples in a long row.

    torch.compile would compile anew for every plain list of numbers; it does not look into objects.

    Args:
        values: tokens of each example, in order.
    """

    def __init__(self, values: Sequence[int]) -> None:
        self.values = list(values)

    @cached_property
    def ends(self) -> Int[Tensor, " E"]:
        """Offsets of the examples' ends, after a leading 0; on the GPU if there is one."""
        ends = torch.tensor([0, *self.values]).cumsum(0, dtype=torch.int32)
        return to_device(ends, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Layout:
    """The examples of packed rows, in row order."""

    lengths: tuple[int, ...]
    """Tokens of each example."""
    position_BS: Int[Tensor, "B S"]
    """Position of each token in its example; padding counts as one."""
    place_N: Int[Tensor, " N"]
    """Place of each token that is not padding among all B x S."""

    @classmethod
    def of(cls, segment_ids_BS: Int[Tensor, "B S"]) -> "Layout":
        """Find the examples: stretches of a packed row with the same number, 0 for padding."""
        position_BS = position_ids(segment_ids_BS)
        place_N = (segment_ids_BS > 0).view(-1).nonzero().squeeze(1)
        starts = (position_BS.view(-1)[place_N] == 0).nonzero().squeeze(1)
        ends = torch.cat([starts[1:], starts.new_tensor([len(place_N)])[: len(starts)]])
        return cls(tuple((ends - starts).tolist()), position_BS, place_N)

    def to(self, device: torch.device) -> "Layout":
        """Return the layout with its tensors on a device."""
        return replace(
            self,
            position_BS=to_device(self.position_BS, device),
            place_N=to_device(self.place_N, device),
        )


def position_ids(segment_ids_BS: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Return positions that restart at 0 with each segment.

    transformers derives the boundaries of packed examples from these, with every attention backend.
    """
    index_S = torch.arange(segment_ids_BS.shape[1], device=segment_ids_BS.device)
    new_BS = torch.ones_like(segment_ids_BS, dtype=torch.bool)
    new_BS[:, 1:] = segment_ids_BS[:, 1:] != segment_ids_BS[:, :-1]
    start_BS = torch.where(new_BS, index_S, 0).cummax(dim=1).values
    return index_S - start_BS
