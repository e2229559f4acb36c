"""An objective in somebody else's trainer: `use_objective` changes what a model's `labels` do.

The model's forward pass then computes the loss from the hidden states and the weight of the output
head, and never holds logits of all tokens. So every loop that trains on the loss that a model
returns works: the Trainer of transformers, loops with accelerate, DDP, FSDP2, PEFT. TRL's
SFTTrainer, which computes a loss of its own, is changed to do so too.

Shapes: B rows, S tokens per row, T = B S, D width, V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from otr.loss.functional import linear_token_loss, token_loss
from otr.loss.objective import IGNORE_INDEX, LossOutput, Objective
from otr.models.checks import check_head
from otr.models.parts import head
from otr.models.structure import trunk, without_adapters

Target = TypeVar("Target")

_inside: ContextVar[bool] = ContextVar("inside a forward pass with an objective", default=False)


@dataclass
class ObjectiveOutput(ModelOutput):
    """Output of a model that was given labels: the loss and sums of `LossOutput`, and no logits.

    `loss` is divided by `num_items_in_batch`, or by the number of scored tokens without it.
    """

    loss: Tensor | None = None
    num_tokens: Tensor | None = None
    nll_sum: Tensor | None = None
    reward_sum: Tensor | None = None
    hit_sum: Tensor | None = None
    entropy_sum: Tensor | None = None


def use_objective(target: Target, objective: str | Objective = "otr", **settings: Any) -> Target:
    """Train a model with an objective, in the trainer or the loop that you have.

    With `labels` (or labels that are shifted already, `shift_labels`), the model's forward pass
    then returns an `ObjectiveOutput` and no logits. Without labels nothing changes. A forward pass
    with labels and without gradients returns the model's own outputs with logits, and the
    objective's loss, unless ``skip_logits=True`` is given.

    A trainer also logs `nll`, `hit_rate`, `entropy` and, for objectives with rewards, `reward`.

    Draws come from torch's default generator and the rank: trainers and accelerate seed it, store
    it in checkpoints, and gradient checkpointing restores it. Without gradients the draws are
    always the same.

    Args:
        target: a Trainer of transformers or an SFTTrainer of TRL, after it was made; or a causal
            language model, with PEFT's adapters or not, before it is wrapped or sharded.
        objective: a registered objective's name, or an `otr.Objective`.
        **settings: of an objective that is given by its name.

    Returns:
        The target, which is changed in place.

    Raises:
        ValueError: no such objective or setting, one that compares with the model before training,
            a model whose logits are not those of an output head, or a trainer that computes another
            loss.
    """
    from transformers import Trainer

    if isinstance(objective, str):
        objective = Objective(objective, **settings)
    elif not isinstance(objective, Objective):
        raise ValueError(f"objective is {objective!r}: use a name or an otr.Objective")
    elif settings:
        raise ValueError(
            f"settings {settings} are given beside {objective}: give them to otr.Objective instead"
        )
    if objective.needs_start:
        raise ValueError(
            f"{objective.name} compares with the model before training, of which a trainer has no "
            "log-probabilities: use `otr train`, or otr.linear_token_loss with start_T in your loop"
        )
    if isinstance(target, Trainer):
        _check_trainer(target)
        _change_model(target.model, objective)
        _change_trainer(target, objective)
    else:
        _change_model(target, objective)
    return target


def _change_model(model: Any, objective: Objective) -> None:
    """Replace the forward pass of the model within any adapters.

    Raises:
        ValueError: the model can't be trained so.
    """
    if not isinstance(without_adapters(model), PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is neither a transformers model nor a Trainer: call "
            "use_objective before the model is wrapped, compiled or prepared"
        )
    model = without_adapters(model)
    _check_model(model)
    kind = type(model)
    # Attributes are copied with the model. A second call must not replace what the first one calls.
    model._otr_plain_forwards = [*getattr(model, "_otr_plain_forwards", []), model.forward]
    number = len(model._otr_plain_forwards) - 1
    names = list(inspect.signature(kind.forward).parameters)[1:]

    @functools.wraps(kind.forward)  # its signature tells trainers which columns it takes
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _objective_is_used():
            inputs = kwargs | dict(zip(names, args, strict=False))
            return _forward(self, self._otr_plain_forwards[number], objective, inputs)

    if hook := getattr(model, "_otr_guard", None):
        hook.remove()
    model._otr_guard = trunk(model).register_forward_pre_hook(_refuse_another_loss)
    model.forward = types.MethodType(forward, model)


def _forward(
    model: Any, plain_forward: Callable[..., Any], objective: Objective, inputs: dict[str, Any]
) -> Any:
    """Compute the loss if `inputs` have labels, else what the model computes without us."""
    labels_BS, shifted_BS = inputs.pop("labels", None), inputs.pop("shift_labels", None)
    count = inputs.pop("num_items_in_batch", None)
    skip_logits = inputs.pop("skip_logits", None)
    if labels_BS is None and shifted_BS is None:
        return plain_forward(**inputs)
    if shifted_BS is None:
        shifted_BS = nn.functional.pad(labels_BS[:, 1:], (0, 1), value=IGNORE_INDEX)
    skip_logits = torch.is_grad_enabled() if skip_logits is None else skip_logits
    if not skip_logits:
        outputs = plain_forward(**inputs | {"return_dict": True})
        logits_TV = outputs.logits.flatten(0, 1)
        target_T = shifted_BS.flatten().to(logits_TV.device)
        out = token_loss(logits_TV, target_T, objective, **_draws(target_T))
        outputs["loss"] = out.loss_sum / _divisor(count, out.num_tokens)
        return outputs
    out = _fused_loss(model, objective, inputs, shifted_BS, count)
    own = {field.name for field in fields(ObjectiveOutput)}
    sums = {field.name: getattr(out, field.name) for field in fields(out) if field.name in own}
    output = ObjectiveOutput(loss=out.loss_sum, **sums)
    return output.to_tuple() if inputs.get("return_dict") is False else output


def _fused_loss(
    model: Any, objective: Objective, inputs: dict[str, Any], shifted_BS: Tensor, count: Any
) -> LossOutput:
    """Compute the loss from hidden states and head, divided by the number of tokens."""
    config = model.config.get_text_config()
    if inputs.get("output_router_logits", getattr(config, "output_router_logits", False)):
        raise ValueError(
            "output_router_logits is True, but the router's auxiliary loss is not computed: set "
            "router_aux_loss_coef=0.0 in SFTConfig, or output_router_logits=False in the config"
        )
    dropped = {"logits_to_keep", "return_dict", "use_cache"}
    inputs = {k: v for k, v in inputs.items() if v is not None and k not in dropped}
    hidden_BSD = trunk(model)(**inputs, use_cache=False).last_hidden_state
    lm_head = head(model)
    weight_VD = lm_head.weight
    if not weight_VD.numel():
        raise ValueError("the head's weight is empty, as under DeepSpeed ZeRO-3: use FSDP2")
    hidden_TD = hidden_BSD.flatten(0, 1).to(weight_VD.device)  # models split by a device_map
    if not torch.is_autocast_enabled(hidden_TD.device.type):
        hidden_TD = hidden_TD.to(weight_VD.dtype)  # a head in higher precision than the layers
    target_T = shifted_BS.flatten().to(hidden_TD.device)
    scored_S = (target_T != IGNORE_INDEX).nonzero().squeeze(1)
    return linear_token_loss(
        hidden_TD,
        weight_VD,
        target_T,
        objective,
        bias=lm_head.bias,
        logit_scale=lm_head.logit_scale,
        softcap=lm_head.softcap,
        scored_S=scored_S,
        factor=1 / _divisor(count, torch.tensor(len(scored_S), device=hidden_TD.device)),
        **_draws(target_T),
    )


def _divisor(count: Any, num_tokens: Tensor) -> Tensor:
    """Return the number of tokens by which the loss is divided; at least 1."""
    if count is None:
        return num_tokens.clamp(min=1)
    return torch.as_tensor(count, device=num_tokens.device).clamp(min=1)


def _draws(target_T: Tensor) -> dict[str, Any]:
    """Return the source of the draws and the numbers of the positions, which differ by rank."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    position_T = torch.arange(len(target_T), device=target_T.device) + (rank << 32)
    generator = None if torch.is_grad_enabled() else torch.Generator().manual_seed(0)
    return {"generator": generator, "position_T": position_T}


@contextmanager
def _objective_is_used() -> Iterator[None]:
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


def _refuse_another_loss(module: nn.Module, args: Any) -> None:
    """Refuse a pass of training whose loss can't be the objective's, however it was reached."""
    if module.training and torch.is_grad_enabled() and not _inside.get():
        raise ValueError(
            "the model is trained without the objective that use_objective gave it, since its "
            "forward pass was replaced afterwards or is not used. TRL's SFTTrainer replaces it: "
            "make the trainer first, then call use_objective(trainer, ...)"
        )


def _check_model(model: Any) -> None:
    """Raise a ValueError if `linear_token_loss` would not be on the model's own logits."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    name = type(model).__name__
    layer, loss = model.get_output_embeddings(), LOSS_MAPPING.get(model.loss_type or "")
    if layer is None or model.config.is_encoder_decoder or loss not in (None, ForCausalLMLoss):
        raise ValueError(
            f"{name} does not predict next tokens by an output head: use a causal language model, "
            "such as AutoModelForCausalLM loads"
        )
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(layer, BaseTunerLayer):
        raise ValueError(
            "the output head has an adapter, which would not be trained: leave it out of "
            "target_modules; modules_to_save can train it as a whole"
        )
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or any(p.is_meta or _is_sharded(p) for p in model.parameters()):
        return  # its logits can't be computed here
    with _objective_is_used():
        check_head(model)


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "device_mesh") or not parameter.numel()


def _check_trainer(trainer: Any) -> None:
    """Raise a ValueError if a trainer computes another loss, or can't compute ours."""
    kind, args = type(trainer), trainer.args
    owner = next(base for base in kind.__mro__ if "compute_loss" in vars(base))
    if owner.__name__ not in ("Trainer", "SFTTrainer", "_ObjectiveTrainer"):
        raise ValueError(
            f"{owner.__name__}.compute_loss computes a loss of its own: use Trainer or SFTTrainer, "
            "or call use_objective(model, ...) if it returns the loss that the model returns"
        )
    if trainer.compute_loss_func is not None:
        raise ValueError(
            "the trainer has a compute_loss_func, which computes another loss: leave it out, or do "
            "without use_objective"
        )
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor is {args.label_smoothing_factor}: leave it out, and smooth by "
            "use_objective(trainer, 'sft', label_smoothing=...)"
        )
    if getattr(args, "loss_type", "nll") not in ("nll", "chunked_nll"):
        raise ValueError(
            f"loss_type is {args.loss_type!r}: leave it out, and name an objective in use_objective"
        )
    kernels = args.liger_kernel_config or {}
    if args.use_liger_kernel and kernels.get("fused_linear_cross_entropy", True):
        raise ValueError(
            "use_liger_kernel replaces the loss when training starts: use liger_kernel_config="
            '{"fused_linear_cross_entropy": False, "cross_entropy": False}'
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process are not supported: use accelerate launch or "
            "torchrun, or show one GPU by CUDA_VISIBLE_DEVICES"
        )
    if trainer.get_tp_size() > 1:
        raise ValueError(f"tensor parallel size {trainer.get_tp_size()}: use FSDP2 or DDP instead")


def _change_trainer(trainer: Any, objective: Objective) -> None:
    """Let a trainer use the model's loss, and log the objective's figures.

    The methods go into a class between the trainer and its own, so that `super` works in both.
    """
    trainer.objective = objective
    trainer.objective_sums = {}
    trainer.model_accepts_loss_kwargs = True  # the new forward pass takes num_items_in_batch
    if not isinstance(trainer, _ObjectiveTrainer):
        kind = type(trainer)
        trainer.__class__ = type(kind.__name__, (_ObjectiveTrainer, kind), {})


class _ObjectiveTrainer:
    """Methods of a Trainer that `use_objective` has changed."""

    objective: Objective
    objective_sums: dict[bool, Tensor]
    """Sums since the last log, [5] in the order of `_SUMS`; of training (True) and evaluation."""
    model: nn.Module
    accelerator: Any

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss that the model computes, as transformers' Trainer does."""
        from transformers import Trainer

        # SFTTrainer's own version would compute a loss from log-probabilities.
        compute: Callable[..., Any] = Trainer.compute_loss
        loss, outputs = compute(self, model, inputs, True, num_items_in_batch)
        if isinstance(outputs, dict) and "nll_sum" in outputs:
            sums = torch.stack([outputs[name].detach().float() for name in _SUMS])
            training = self.model.training
            self.objective_sums[training] = self.objective_sums.get(training, 0) + sums
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate a batch, with logits only if they are used."""
        inputs = {**inputs, "skip_logits": prediction_loss_only}
        return super().prediction_step(  # type: ignore[misc]
            model, inputs, prediction_loss_only, *args, **kwargs
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the means over the tokens of all ranks since the last log."""
        training = self.model.training
        key = "loss" if training else next((k for k in logs if k.endswith("_loss")), "")
        if key in logs and training in self.objective_sums:
            sums = self.accelerator.reduce(self.objective_sums.pop(training))
            count, nll, hits, entropy, reward = sums.tolist()
            means = {"nll": nll, "hit_rate": hits, "entropy": entropy}
            means |= {"reward": reward} if self.objective.rolls_out else {}
            prefix = key.removesuffix("loss")
            logs |= {prefix + name: value / max(count, 1) for name, value in means.items()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


_SUMS = ("num_tokens", "nll_sum", "hit_sum", "entropy_sum", "reward_sum")
