"""Cases and inputs of the loss benchmark, and the check that all variants do equal work.

A case has T positions, D width, V vocabulary, dtype and device; its inputs are hidden [T, D],
weight [V, D] and target [T].
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from otr import Objective
from tests.benchmarks.loss_peers import VARIANTS, Loss

LOGIT_STD = 3.0
ROUNDING = {"float32": 1e-4, "bfloat16": 5e-2}  # relative distance allowed for a dtype
SAMPLING = 3.0  # relative distance allowed for n draws, times sqrt(n); observed: 1.8
SAMPLED_RUNS = 16


@dataclass(frozen=True)
class Case:
    T: int
    D: int
    V: int
    dtype: str
    device: str

    @classmethod
    def parse(cls, text: str, device: str) -> "Case":
        """Read ``1024x2048x151936:float32``: rows, width, vocabulary, dtype."""
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+):(\w+)", text)
        if match is None or match[4] not in ROUNDING:
            raise ValueError(f"case {text!r}: use TxDxV:dtype, the dtype one of {list(ROUNDING)}")
        return cls(int(match[1]), int(match[2]), int(match[3]), match[4], device)

    def __str__(self) -> str:
        return f"{self.T}x{self.D}x{self.V}:{self.dtype}"


class Inputs(NamedTuple):
    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor


def make_inputs(case: Case) -> Inputs:
    """Make inputs whose logits look like a language model's; every call makes the same.

    hidden ~ N(0, 1) and weight ~ N(0, 9 / D), so logits ~ N(0, 9) and their log-sum-exp is about
    ln V + 9/2. Every second hidden state is moved along its target's weight until p(y) is about
    uniform on (0, 1); at the other positions p(y) is nearly 0, as chance makes it.
    """
    generator = torch.Generator(case.device).manual_seed(0)
    options = {"generator": generator, "device": case.device}
    hidden_TD = torch.randn(case.T, case.D, **options)
    weight_VD = torch.randn(case.V, case.D, **options).mul_(LOGIT_STD / math.sqrt(case.D))
    target_T = torch.randint(case.V, (case.T,), **options)

    likely_TD = weight_VD[target_T]
    log_sum_exp = math.log(case.V) + LOGIT_STD**2 / 2
    wanted_T = log_sum_exp + torch.logit(torch.rand(case.T, **options), eps=1e-3)
    missing_T = wanted_T - (hidden_TD * likely_TD).sum(1)
    step_T = missing_T / likely_TD.square().sum(1)
    hidden_TD[::2] += (step_T[:, None] * likely_TD)[::2]

    dtype = getattr(torch, case.dtype)
    return Inputs(
        hidden_TD.to(dtype).requires_grad_(), weight_VD.to(dtype).requires_grad_(), target_T
    )


def check_equal_work(losses: Mapping[str, Loss], dtype: str, device: str) -> None:
    """Compare every variant with its objective in float64, on a small input.

    All losses are sums over positions, and variants of an objective have equal constants: the DFT
    of Liger and of TRL has otr's value and gradients (TRL's trainer then divides by the number of
    tokens). A sampled variant is compared with its expectation: the mean of `SAMPLED_RUNS` runs,
    within the error of that many draws.

    Raises:
        RuntimeError: a loss or a gradient is too far off.
    """
    inputs = make_inputs(Case(256, 128, 1024, dtype, device))
    exact = Inputs(*(x.detach().double().requires_grad_() for x in inputs[:2]), inputs.target_T)
    for name, loss in losses.items():
        objective = VARIANTS[name].objective
        allowed, runs = ROUNDING[dtype], 1
        if objective.name == "otr" and objective.estimator == "sampled":
            runs = SAMPLED_RUNS
            allowed += SAMPLING / math.sqrt(runs * objective.num_samples)
        truth = _loss_and_gradients(lambda *x, o=objective: _expected_loss(*x, o), exact)
        results = [_loss_and_gradients(loss, inputs) for _ in range(runs)]
        result = [sum(part) / runs for part in zip(*results, strict=True)]
        for part, value, true in zip(("loss", "d hidden", "d weight"), result, truth, strict=True):
            distance = float((value - true).norm() / true.norm())
            if not distance <= allowed:
                raise RuntimeError(
                    f"{name}, {dtype}: {part} is {distance:.1e} from {objective}; "
                    f"{allowed:.1e} is allowed. The benchmark would compare unequal work."
                )


def _loss_and_gradients(loss: Loss, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    value = loss(*inputs)
    gradients = torch.autograd.grad(value, inputs[:2])
    return value.detach().double(), gradients[0].double(), gradients[1].double()


def _expected_loss(
    hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, objective: Objective
) -> Tensor:
    """Compute -sum_v w(v) log p(v) with constant w, the form of every objective.

    Of otr, only the weights of weighted objectives are used.
    """
    logits_TV = hidden_TD @ weight_VD.T
    logp_TV = torch.log_softmax(logits_TV, -1)
    hit_TV = F.one_hot(target_T, logits_TV.shape[1])
    with torch.no_grad():
        if objective.name == "sft":
            weight_TV = hit_TV
        elif objective.name == "dft":
            weight_TV = hit_TV * logp_TV.exp()
        elif objective.is_weighted:
            p_TV, entropy_T = logp_TV.exp(), torch.special.entr(logp_TV.exp()).sum(-1, keepdim=True)
            weight_TV = hit_TV * objective.weight(torch, p_TV, logp_TV, entropy_T)
        else:
            q_TV = torch.softmax(logits_TV / objective.temperature, -1)
            reward_TV = torch.where(hit_TV == 1, 1.0, objective.mismatch_reward)
            weight_TV = objective.reward_scale * reward_TV * q_TV
    return -(weight_TV * logp_TV).sum()
