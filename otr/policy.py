"""The model and its loss in one module, so that DDP and FSDP see one forward pass.

Shapes: B rows, S row length, N tokens that are no padding.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from otr.loss import linear_token_loss
from otr.model import head, hidden_states
from otr.objective import IGNORE_INDEX, LossOutput, Objective

Batch = Mapping[str, Tensor]
"""A micro-batch: contract 1, [B, S] each."""


class Policy(nn.Module):
    """What is trained, and towards what."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch, seed: int, first_row: int) -> LossOutput:
        """The loss of a micro-batch whose first row is number `first_row` of its step."""
        ids_BS, segments_BS = batch["input_ids"], batch["segment_ids"]
        rows, length = ids_BS.shape
        real_BS = segments_BS > 0
        target_BS = torch.full_like(ids_BS, IGNORE_INDEX, dtype=torch.long)
        target_BS[:, :-1] = (
            ids_BS[:, 1:].long().masked_fill(~batch["loss_mask"][:, 1:], IGNORE_INDEX)
        )
        # Draws are numbered by a token's place in its step, however the step is split.
        row_B = torch.arange(first_row, first_row + rows, device=ids_BS.device)
        place_S = torch.arange(length, device=ids_BS.device)
        position_BS = row_B[:, None] * (length - 1) + place_S
        its = head(self.model)
        return linear_token_loss(
            hidden_states(self.model, ids_BS, segments_BS),
            its.weight,
            target_BS[real_BS],
            self.objective,
            bias=its.bias,
            logit_scale=its.logit_scale,
            softcap=its.softcap,
            generator=torch.Generator().manual_seed(seed),
            position_T=position_BS[real_BS],
        )
