"""Rows of logits that cover every case of the loss, for tests of its backends."""

import torch
from torch import Tensor

from otr import Objective
from otr.loss.objective import names

OBJECTIVES = [
    Objective("sft"),
    Objective("dft"),
    Objective(estimator="expected"),
    Objective(estimator="expected", mismatch_reward=0.0),
    Objective(estimator="expected", temperature=1.0, reward_scale=2.0),
    Objective(num_samples=7),
    Objective(num_samples=100, mismatch_reward=-1.0, temperature=0.7),
    Objective(num_samples=16, mismatch_reward=0.0),
    Objective(num_samples=33, estimator="half"),
    Objective("sft", label_smoothing=0.2),
    Objective("sft", z_loss=0.01),
    Objective("sft", label_smoothing=0.1, z_loss=0.01),
    *(Objective(name) for name in names() if name not in ("otr", "sft", "dft")),
]


def logits_and_targets(rows: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return float32 logits, some of them -inf, and targets that half of the rows make likely."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits_CV = 3 * torch.randn(rows, vocabulary, generator=generator)
    target_C = torch.randint(vocabulary, (rows,), generator=generator)
    logits_CV[torch.arange(0, rows, 2), target_C[::2]] += 8
    if vocabulary > 10:
        logits_CV[:, : vocabulary // 2 : 3] = -torch.inf
        target_C = target_C.clamp(min=vocabulary // 2)
    return logits_CV, target_C
