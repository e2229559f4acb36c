"""What a model predicts at given tokens: NLL and accuracy of references, and KL from another model.

All functions take examples as `otr.data` makes them and return one sum over the target tokens of
each example, so that the caller can resample examples. The model runs in the precision of training,
and each example is in a row of its own.

Shapes: B rows, S sequence length, N tokens that are not padding, T target tokens, D width,
V vocabulary, E examples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from otr.data import Example, pack
from otr.loop.batch import PackedBatch
from otr.loop.policy import Policy, target_states
from otr.loss.objective import Objective
from otr.models.parts import Head, head

TOKENS_AT_ONCE = 4096  # of a forward pass
LOGITS_AT_ONCE = 2**24  # 64 MiB in float32; the KL holds four matrices of this size


@dataclass(frozen=True)
class ReferenceSums:
    """How well a model predicts reference answers; one number per example."""

    tokens: list[int]
    """Target tokens."""
    nll: list[float]
    """Sum of their negative log-likelihoods in nats."""
    right: list[int]
    """Target tokens that are the model's most likely choice."""


@dataclass(frozen=True)
class States:
    """A model's predictions of the target tokens of some examples, before the head.

    The logits would take V / D times the memory.
    """

    hidden_TD: Float[Tensor, "T D"]
    example_T: Int[Tensor, " T"]
    """Index of each token's example."""
    head: Head
    num_examples: int


@torch.no_grad()
def reference_sums(
    model: PreTrainedModel, examples: Sequence[Example], dtype: str = "float32"
) -> ReferenceSums:
    """Compute the NLL and the greedy accuracy of the target tokens, as `evaluate` does.

    Args:
        model: on its compute device; with or without adapters.
        examples: token ids, and which of them are targets.
        dtype: precision of the forward pass, as in `ModelConfig.dtype`.
    """
    policy = Policy(model, Objective("sft")).eval()
    sums_E3 = torch.zeros(len(examples), 3, dtype=torch.float64, device=policy.device)
    for batch, example_T in _batches(examples, policy.device):
        with policy.precision(dtype):
            nll_T, right_T = policy.predict(batch)
        values_T3 = torch.stack([torch.ones_like(nll_T), nll_T, right_T.to(nll_T)], dim=1)
        sums_E3.index_add_(0, example_T, values_T3.double())
    tokens_E, nll_E, right_E = sums_E3.T.tolist()
    return ReferenceSums([*map(int, tokens_E)], nll_E, [*map(int, right_E)])


@torch.no_grad()
def predict_states(
    model: PreTrainedModel, examples: Sequence[Example], dtype: str = "float32"
) -> States:
    """Return what `kl_sums` needs of a model; see `reference_sums` for the arguments."""
    policy = Policy(model, Objective("sft")).eval()
    hidden, example = [], []
    for batch, example_T in _batches(examples, policy.device):
        with policy.precision(dtype):
            hidden.append(target_states(model, batch).float())
        example.append(example_T)
    return States(torch.cat(hidden), torch.cat(example), head(model), len(examples))


@torch.no_grad()
def kl_sums(base: States, other: States) -> list[float]:
    """Return the sum of KL(base || other) over the target tokens of each example, in nats.

    Each token's KL is that of the two distributions before the token, over the base's vocabulary.
    The heads compute in float32: the rounding of logits to bfloat16 would count as a difference.

    Args:
        base: of the base model.
        other: of the other model, for the same examples.
    """
    assert torch.equal(base.example_T, other.example_T), "states of different examples"
    sums_E = torch.zeros(base.num_examples, dtype=torch.float64, device=base.hidden_TD.device)
    rows = max(1, LOGITS_AT_ONCE // len(base.head.weight))
    for part in torch.arange(len(base.example_T), device=sums_E.device).split(rows):
        base_TV = base.head.logits(base.hidden_TD[part]).log_softmax(-1)
        other_TV = other.head.logits(other.hidden_TD[part])[:, : base_TV.shape[1]].log_softmax(-1)
        kl_T = base_TV.exp().mul_(base_TV.sub_(other_TV)).sum(-1)
        sums_E.index_add_(0, base.example_T[part], kl_T.double())
    return sums_E.tolist()


def _batches(
    examples: Sequence[Example], device: torch.device
) -> Iterator[tuple[PackedBatch, Int[Tensor, " T"]]]:
    """Yield batches of up to TOKENS_AT_ONCE tokens, or of one example, in order.

    With each comes the index of the example of each target token.
    """
    start = end = 0
    while start < len(examples):
        length = 0
        while end < len(examples):
            longest = max(length, len(examples[end][0]))
            if end > start and longest * (end + 1 - start) > TOKENS_AT_ONCE:
                break
            length, end = longest, end + 1
        rows = [pack([example], length) for example in examples[start:end]]
        batch = {
            name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]
        }
        example_T = start + batch["loss_mask"].nonzero()[:, 0]
        yield PackedBatch.of(batch).to(device), example_T.to(device)
        start = end
