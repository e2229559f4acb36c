"""The trained model and its loss in one module, so that DDP and FSDP see one forward pass.

Shapes: B packed rows, S sequence length (tokens per packed row), N tokens that are not padding,
D width, T target tokens, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from otr.config import ModelConfig
from otr.loss.functional import linear_token_loss
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective
from otr.models.load import load_model
from otr.models.parts import head, hidden_states

Batch = Mapping[str, Tensor]
"""A packed batch: `input_ids`, `loss_mask` and `segment_ids`, [B, S] each (see `otr.data`)."""

SCORED_AT_ONCE = 1024  # target tokens whose logits `Policy.predict` holds at the same time


class Predictions(NamedTuple):
    """How a model predicts the target tokens of a batch."""

    nll_T: Float[Tensor, " T"]
    """In nats, float32."""
    right_T: Bool[Tensor, " T"]
    """Whether the target is the most likely token."""


@dataclass(frozen=True)
class ReloadedNll:
    """NLL of each target token of a batch under a saved model, in the precisions of training."""

    float32_T: Float[Tensor, " T"]
    autocast_T: Float[Tensor, " T"]
    """Under autocast to bfloat16."""
    bfloat16_T: Float[Tensor, " T"]
    """Under autocast with weights in bfloat16, as FSDP2 computes. The rounded weights are the same,
    so the difference from `autocast_T` is what rounding in other places changes."""


def reloaded_nll(directory: Path, model: PreTrainedModel, batch: Batch) -> ReloadedNll:
    """Compute a batch's NLL under the model saved in `directory`, loaded on the CPU.

    Args:
        directory: a Hugging Face checkpoint directory.
        model: the model it was saved from, which tells how to load it.
        batch: a packed batch.
    """
    from otr.models.lora import load_adapters

    trusted = "auto_map" in model.config.to_dict()  # its remote code has been loaded already
    source = ModelConfig(str(directory), trust_remote_code=trusted)
    if hasattr(model, "peft_config"):
        base = str(model.peft_config["default"].base_model_name_or_path)
        reloaded = cast(PreTrainedModel, load_adapters(directory, replace(source, path=base)))
    else:
        reloaded = load_model(source)
    policy = Policy(reloaded.eval(), Objective("sft"))
    with torch.no_grad():
        float32_T = policy.predict(batch).nll_T
        with torch.autocast("cpu", torch.bfloat16):
            autocast_T = policy.predict(batch).nll_T
            for parameter in policy.parameters():
                if parameter.is_floating_point():  # not the 4 bits of a quantized base model
                    parameter.data = parameter.data.bfloat16()
            return ReloadedNll(float32_T, autocast_T, policy.predict(batch).nll_T)


class Policy(nn.Module):
    """A model and the objective it is trained with."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    @property
    def device(self) -> torch.device:
        """Compute device; under fsdp_offload the weights are in host memory instead."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def precision(self, dtype: str) -> torch.autocast:
        """Return the autocast context for a `ModelConfig.dtype`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward(self, batch: Batch, seed: int, first_row: int) -> LossOutput:
        """Compute the loss of a micro-batch.

        If logits hold NaN or inf, the loss and all gradients are NaN, on all ranks once gradients
        have been averaged.

        Args:
            batch: a packed batch.
            seed: of the step's draws.
            first_row: number of the micro-batch's first packed row within its step.
        """
        ids_BS, segments_BS = batch["input_ids"], batch["segment_ids"]
        rows, length = ids_BS.shape
        real_BS = segments_BS > 0
        target_BS = torch.full_like(ids_BS, IGNORE_INDEX, dtype=torch.long)
        target_BS[:, :-1] = (
            ids_BS[:, 1:].long().masked_fill(~batch["loss_mask"][:, 1:], IGNORE_INDEX)
        )
        # Draws depend on a token's position within its step, however the step is split.
        row_B = torch.arange(first_row, first_row + rows, device=ids_BS.device)
        column_S = torch.arange(length, device=ids_BS.device)
        position_BS = row_B[:, None] * (length - 1) + column_S
        lm_head = head(self.model)
        hidden_ND = hidden_states(self.model, ids_BS, segments_BS)
        try:
            return linear_token_loss(
                hidden_ND,
                lm_head.weight,
                target_BS[real_BS],
                self.objective,
                bias=lm_head.bias,
                logit_scale=lm_head.logit_scale,
                softcap=lm_head.softcap,
                generator=torch.Generator().manual_seed(seed),
                position_T=position_BS[real_BS],
            )
        except FloatingPointError:
            # NaN that depends on all weights, so that other ranks' backward passes do not hang.
            parts = [hidden_ND, lm_head.weight, *([] if lm_head.bias is None else [lm_head.bias])]
            nan = torch.stack([torch.nan * part.float().sum() for part in parts]).sum()
            num_tokens = (target_BS[real_BS] != IGNORE_INDEX).sum()
            return LossOutput(nan, num_tokens, *[nan.detach()] * 4)

    def predict(self, batch: Batch) -> Predictions:
        """Return the NLL of each target token of a batch, and whether it is the most likely one."""
        hidden_TD = target_states(self.model, batch)
        target_T = batch["input_ids"][:, 1:][_scored(batch)[:, :-1]].long()
        nll_T, right_T = (
            torch.zeros_like(target_T, dtype=torch.float),
            torch.zeros_like(target_T, dtype=torch.bool),
        )
        for part in torch.arange(len(target_T), device=target_T.device).split(SCORED_AT_ONCE):
            logits_TV = head(self.model).logits(hidden_TD[part])
            nll_T[part] = cross_entropy(logits_TV, target_T[part], reduction="none")
            right_T[part] = logits_TV.argmax(-1) == target_T[part]
        return Predictions(nll_T, right_T)

    def score(self, batch: Batch) -> Tensor:
        """Return [summed NLL, correct tokens, tokens, correct examples, examples] of a batch."""
        nll_T, right_T = self.predict(batch)
        scored_BS = _scored(batch)
        row_BS = torch.arange(len(scored_BS), device=scored_BS.device)[:, None]
        key_BS = row_BS * scored_BS.shape[1] + batch["segment_ids"]
        examples, example_T = key_BS[scored_BS].unique(return_inverse=True)
        wrong = torch.zeros(len(examples), device=nll_T.device)
        wrong.index_add_(0, example_T, (~right_T).float())
        numbers = [len(right_T), (wrong == 0).sum(), len(examples)]
        sums = [nll_T.double().sum(), right_T.sum(), *numbers]
        return torch.stack([torch.as_tensor(s, device=wrong.device).double() for s in sums])


def target_states(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "T D"]:
    """Return the head's input from which each target token of a batch is predicted."""
    hidden_ND = hidden_states(model, batch["input_ids"], batch["segment_ids"])
    return hidden_ND[_scored(batch)[batch["segment_ids"] > 0]]


def _scored(batch: Batch) -> Bool[Tensor, "B S"]:
    """Return the positions whose next token is a target token."""
    scored_BS = torch.zeros_like(batch["segment_ids"], dtype=torch.bool)
    scored_BS[:, :-1] = batch["loss_mask"][:, 1:]
    return scored_BS
