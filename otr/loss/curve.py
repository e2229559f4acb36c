"""An objective's weight on SFT's gradient, as a function of the target's probability.

The weight is the gradient of the target's logit divided by that of SFT, which is p(y) - 1. For an
objective that multiplies SFT's loss by a weight it is that weight.

Most objectives need no more than p(y). For those that also depend on the other tokens (through the
entropy, or a temperature), these are N equally likely ones, for a few N.

An objective that compares with the model before training is shown as it is at the first step.

Shapes: P probabilities of the target, V vocabulary (the target and N others).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from otr.loss.functional import token_loss
from otr.loss.objective import Objective

OTHERS = (1, 20, 1000)
"""Numbers of other tokens: the model is torn between two, among a few, among very many."""
TYPICAL = 20
"""The one of them that comparisons of all objectives show."""
_ABOVE = 1e-9  # relative: rounding must not decide on which side of a threshold a probability lies


def weights(
    objective: Objective, p_P: Sequence[float], others: int = TYPICAL
) -> Float[Tensor, " P"]:
    """Return the weight at each probability of the target, in float64.

    Of an objective that draws tokens, it is the weight in expectation.

    Args:
        objective: any.
        p_P: probabilities of the target, above 0 and below 1.
        others: number of other tokens, which share the rest of the probability equally.

    Raises:
        ValueError: a probability is out of range, or the loss needs more than logits and targets.
    """
    target_P1 = torch.tensor(p_P, dtype=torch.float64)[:, None]
    if not ((target_P1 > 0) & (target_P1 < 1)).all():
        raise ValueError(f"probabilities are {list(p_P)}: use numbers above 0 and below 1")
    target_P1 = target_P1 * (1 + _ABOVE)
    rest_PN = ((1 - target_P1) / others).expand(-1, others)
    logits_PV = torch.cat([target_P1, rest_PN], 1).log().requires_grad_()
    target_P = torch.zeros(len(target_P1), dtype=torch.int64)
    start_P = target_P1[:, 0].log() if objective.needs_start else None
    loss = token_loss(logits_PV, target_P, objective.expectation, start_T=start_P).loss_sum
    (slope_PV,) = torch.autograd.grad(loss, logits_PV)
    return slope_PV[:, 0] / (target_P1[:, 0] - 1) + 0.0  # which makes -0 0


def depends_on_others(objective: Objective) -> bool:
    """Return whether the weight depends on more than the target's probability."""
    few, many = (weights(objective, (0.1, 0.5, 0.9), others) for others in OTHERS[::2])
    return not torch.allclose(few, many, rtol=1e-6, atol=1e-9)
