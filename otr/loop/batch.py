"""A packed batch as the policy needs it: the tokens, their examples and what is to be predicted.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
T target tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from otr.models.layout import Layout, to_device

Batch = Mapping[str, Tensor]
"""A packed batch: `input_ids`, `loss_mask` and `segment_ids`, [B, S] each (see `otr.data`)."""


@dataclass(frozen=True)
class PackedBatch:
    """A packed batch with its examples and target tokens."""

    input_ids_BS: Int[Tensor, "B S"]
    layout: Layout
    index_T: Int[Tensor, " T"]
    """The token before each target, among the N tokens that are not padding."""
    target_T: Int[Tensor, " T"]
    """The target tokens."""
    position_T: Int[Tensor, " T"]
    """A number for each target that is its own in the step, however the step is split."""
    example_T: Int[Tensor, " T"]
    """The example of each target; examples without targets have no number."""
    num_examples: int
    """Examples with targets."""

    @classmethod
    def of(cls, batch: Batch, first_row: int = 0) -> "PackedBatch":
        """Look at a batch, which should be in host memory (see `otr.models.layout`).

        Args:
            batch: the packed batch.
            first_row: number of its first packed row within the step.
        """
        ids_BS, segments_BS = batch["input_ids"], batch["segment_ids"]
        length = ids_BS.shape[1]
        real_BS = segments_BS > 0
        scored_BS = torch.zeros_like(real_BS)
        scored_BS[:, :-1] = batch["loss_mask"][:, 1:]
        place_T = (scored_BS & real_BS).view(-1).nonzero().squeeze(1)
        row_T, column_T = place_T // length, place_T % length
        among_N = real_BS.view(-1).cumsum(0) - 1
        segment_T = segments_BS.reshape(-1)[place_T]
        key_T = row_T * (length + 1) + segment_T  # a row has at most `length` segments
        examples, example_T = key_T.unique(return_inverse=True)
        return cls(
            input_ids_BS=ids_BS,
            layout=Layout.of(segments_BS),
            index_T=among_N[place_T],
            target_T=ids_BS.reshape(-1)[place_T + 1].long(),
            position_T=(first_row + row_T) * (length - 1) + column_T,
            example_T=example_T,
            num_examples=len(examples),
        )

    @property
    def num_tokens(self) -> int:
        """Number of tokens, padding excluded."""
        return len(self.layout.place_N)

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch on a device."""
        return replace(
            self,
            input_ids_BS=to_device(self.input_ids_BS, device),
            layout=self.layout.to(device),
            index_T=to_device(self.index_T, device),
            target_T=to_device(self.target_T, device),
            position_T=to_device(self.position_T, device),
            example_T=to_device(self.example_T, device),
        )
