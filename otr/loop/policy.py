"""The trained model and its loss in one module, so that DDP and FSDP see one forward pass.

Shapes: N tokens that are not padding, D width, T target tokens, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from otr._compat import adapters_off
from otr.config import ModelConfig
from otr.loop.batch import PackedBatch
from otr.loss.functional import linear_token_loss
from otr.loss.fused import BaseStates
from otr.loss.objective import LossOutput, Objective
from otr.models.load import load_model
from otr.models.parts import Head, head, hidden_states

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


def reloaded_nll(directory: Path, model: PreTrainedModel, batch: PackedBatch) -> ReloadedNll:
    """Compute a batch's NLL under the model saved in `directory`, loaded on the CPU.

    Args:
        directory: a Hugging Face checkpoint directory.
        model: the model it was saved from, which tells how to load it.
        batch: in host memory.
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
    """A model and the objective it is trained with.

    Args:
        model: the model in training.
        objective: its objective.
        kl_weight: factor of KL(base || model) in the loss.
        base: the frozen model that it is compared with (`otr.models.load.as_base`); None: the model
            without its adapters, if it has any.

    Raises:
        ValueError: there is a `kl_weight` and nothing to compare with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        kl_weight: float = 0.0,
        base: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.model, self.objective, self.kl_weight, self.base = model, objective, kl_weight, base
        if kl_weight and not self.has_base:
            raise ValueError(
                f"kl_weight is {kl_weight}, but there is no base model to compare with: give "
                "base=otr.models.load.as_base(another copy of the model), or train adapters"
            )

    @property
    def has_base(self) -> bool:
        """Whether there is a base model to compare with."""
        return self.base is not None or hasattr(self.model, "peft_config")

    def train(self, mode: bool = True) -> "Policy":
        """Set the mode of the model in training; a base model always evaluates."""
        super().train(mode)
        if self.base is not None:
            self.base.eval()
        return self

    @contextmanager
    def _base_model(self) -> Iterator[PreTrainedModel]:
        """Give the base model, without gradients and dropout."""
        with torch.no_grad():
            if self.base is not None:
                yield self.base
                return
            trains = self.model.training
            self.model.eval()
            try:
                with adapters_off(self.model):
                    yield self.model
            finally:
                self.model.train(trains)

    @property
    def device(self) -> torch.device:
        """Compute device; under fsdp_offload the weights are in host memory instead."""
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    def precision(self, dtype: str) -> torch.autocast:
        """Return the autocast context for a `ModelConfig.dtype`."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bfloat16")

    def forward(self, batch: PackedBatch, seed: int, factor: float = 1.0) -> LossOutput:
        """Compute the loss of a micro-batch.

        If logits hold NaN or inf, the loss and all gradients are NaN, on all ranks once gradients
        have been averaged.

        Args:
            batch: on the compute device.
            seed: of the step's draws.
            factor: of the summed loss and the gradients.
        """
        base = None
        if self.kl_weight:
            with self._base_model() as model:
                base = BaseStates(
                    hidden_states(model, batch.input_ids_BS, batch.layout),
                    head(model).weight,
                    head(model).bias,
                )
        lm_head = head(self.model)
        return linear_token_loss(
            hidden_states(self.model, batch.input_ids_BS, batch.layout),
            lm_head.weight,
            batch.target_N,
            self.objective,
            bias=lm_head.bias,
            logit_scale=lm_head.logit_scale,
            softcap=lm_head.softcap,
            generator=torch.Generator().manual_seed(seed),
            position_T=batch.position_N,
            scored_S=batch.index_T,
            factor=factor,
            start_T=batch.start_N,
            base=base,
            kl_weight=self.kl_weight,
            check=False,
        )

    def predict(self, batch: PackedBatch) -> Predictions:
        """Return the NLL of each target token of a batch, and whether it is the most likely one."""
        hidden_TD = target_states(self.model, batch)
        target_T = batch.target_N[batch.index_T]
        nll_T, right_T = (
            torch.zeros_like(target_T, dtype=torch.float),
            torch.zeros_like(target_T, dtype=torch.bool),
        )
        for start in range(0, len(target_T), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            logits_TV = head(self.model).logits(hidden_TD[part])
            nll_T[part] = cross_entropy(logits_TV, target_T[part], reduction="none")
            right_T[part] = logits_TV.argmax(-1) == target_T[part]
        return Predictions(nll_T, right_T)

    def score(self, batch: PackedBatch) -> Tensor:
        """Return [summed NLL, correct tokens, tokens, correct examples, examples] of a batch."""
        nll_T, right_T = self.predict(batch)
        wrong = torch.zeros(batch.num_examples, device=nll_T.device)
        wrong.index_add_(0, batch.example_T, (~right_T).float())
        nll, right, exact = nll_T.double().sum(), right_T.sum(), (wrong == 0).sum()
        tokens, examples = nll.new_tensor([len(right_T), batch.num_examples])
        return torch.stack([nll, right.double(), tokens, exact.double(), examples])

    @torch.no_grad()
    def kl_to_base(self, batch: PackedBatch) -> Tensor:
        """Return the sum of KL(base || model) over the target tokens of a batch, in nats, float64.

        The heads compute in float32: rounding of logits to bfloat16 would count as a difference.
        """
        states_TD, own = target_states(self.model, batch).float(), _in_float32(head(self.model))
        with self._base_model() as model:
            base_TD, base = target_states(model, batch).float(), _in_float32(head(model))
        total = torch.zeros((), dtype=torch.float64, device=states_TD.device)
        with torch.autocast(self.device.type, enabled=False):
            for start in range(0, len(states_TD), SCORED_AT_ONCE):
                part = slice(start, start + SCORED_AT_ONCE)
                base_TV = base.logits(base_TD[part]).log_softmax(-1)
                total += kl_div(
                    own.logits(states_TD[part]).log_softmax(-1),
                    base_TV,
                    reduction="none",
                    log_target=True,
                ).sum(dtype=torch.float64)
        return total


def _in_float32(lm_head: Head) -> Head:
    bias = lm_head.bias
    return replace(
        lm_head, weight=lm_head.weight.float(), bias=None if bias is None else bias.float()
    )


def target_states(model: PreTrainedModel, batch: PackedBatch) -> Float[Tensor, "T D"]:
    """Return the head's input from which each target token of a batch is predicted."""
    return hidden_states(model, batch.input_ids_BS, batch.layout)[batch.index_T]
