"""A packed batch as the policy needs it: the tokens, their examples and what is to be predicted.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
T target tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss.objective import IGNORE_INDEX
from otr.models.layout import Layout, to_device

Batch = Mapping[str, Tensor]
"""A packed batch: `input_ids`, `loss_mask` and `segment_ids`, [B, S] each (see `otr.data`).

For objectives that need it also `start`: the log-probability of each target before training."""


@dataclass(frozen=True)
class PackedBatch:
    """A packed batch with its examples and target tokens."""

    input_ids_BS: Int[Tensor, "B S"]
    layout: Layout
    target_N: Int[Tensor, " N"]
    """The token that each token should predict, or IGNORE_INDEX."""
    position_N: Int[Tensor, " N"]
    """A number for each token that is its own in the step, however the step is split."""
    index_T: Int[Tensor, " T"]
    """The tokens that have a target, among the N."""
    example_T: Int[Tensor, " T"]
    """The example of each target; examples without targets have no number."""
    num_examples: int
    """Examples with targets."""
    start_N: Float[Tensor, " N"] | None = None
    """Log-probability of each token's target before training; None if the batch has none."""

    @classmethod
    def of(cls, batch: Batch, first_row: int = 0) -> "PackedBatch":
        """Look at a batch, which should be in host memory (see `otr.models.layout`).

        Args:
            batch: the packed batch.
            first_row: number of its first packed row within the step.
        """
        ids_BS, segments_BS = batch["input_ids"], batch["segment_ids"]
        length = ids_BS.shape[1]
        target_BS = torch.full_like(ids_BS, IGNORE_INDEX, dtype=torch.long)
        next_BS, scored_BS = ids_BS[:, 1:].long(), batch["loss_mask"][:, 1:]
        target_BS[:, :-1] = next_BS.masked_fill(~scored_BS, IGNORE_INDEX)
        layout = Layout.of(segments_BS)
        place_N = layout.place_N
        row_N, column_N = place_N // length, place_N % length
        target_N = target_BS.view(-1)[place_N]
        index_T = (target_N != IGNORE_INDEX).nonzero().squeeze(1)
        # A row has at most `length` segments.
        key_T = (row_N * (length + 1) + segments_BS.reshape(-1)[place_N])[index_T]
        examples, example_T = key_T.unique(return_inverse=True)
        start_N = None
        if "start" in batch:  # of the token that each token should predict
            start_N = batch["start"].roll(-1, 1).reshape(-1)[place_N]
        return cls(
            input_ids_BS=ids_BS,
            layout=layout,
            target_N=target_N,
            position_N=(first_row + row_N) * (length - 1) + column_N,
            index_T=index_T,
            example_T=example_T,
            num_examples=len(examples),
            start_N=start_N,
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
            target_N=to_device(self.target_N, device),
            position_N=to_device(self.position_N, device),
            index_T=to_device(self.index_T, device),
            example_T=to_device(self.example_T, device),
            start_N=None if self.start_N is None else to_device(self.start_N, device),
        )
