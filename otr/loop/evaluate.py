"""Evaluation on held-out packed batches, with metrics that compare across objectives."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from otr.loop import parallel
from otr.loop.batch import Batch, PackedBatch
from otr.loop.policy import Policy


@torch.no_grad()
def evaluate(policy: Policy, batches: Sequence[Batch], dtype: str = "float32") -> dict[str, float]:
    """Score teacher-forced predictions. Every rank calls this, with its own batches or none.

    Args:
        policy: the model.
        batches: this rank's packed batches; ranks may have different numbers of them.
        dtype: precision of the forward pass, as in `ModelConfig.dtype`.

    Returns:
        Means over all ranks: ``val_nll`` (nats per token), ``val_token_accuracy`` (share of tokens
        that are the model's most likely choice) and ``val_exact`` (share of examples of which all
        tokens are, which is the share that greedy decoding would reproduce exactly). With a base
        model also ``val_kl_to_base``, KL(base || model) in nats per token.
    """
    policy.eval()
    device = policy.device
    passes = torch.tensor(len(batches), device=device)
    if parallel.world_size() > 1:
        dist.all_reduce(passes, dist.ReduceOp.MAX)
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    for i in range(int(passes)):
        # Under fsdp all ranks take part in every forward pass.
        batch = batches[i] if i < len(batches) else empty_batch()
        with policy.precision(dtype):
            packed = PackedBatch.of(batch).to(device)
            sums[:5] += policy.score(packed)
            if policy.has_base:
                sums[5] += policy.kl_to_base(packed)
    policy.train()
    nll, right, tokens, exact, examples, kl = parallel.sum_over_ranks(sums).tolist()
    found = {
        "val_nll": nll / max(1, tokens),
        "val_token_accuracy": right / max(1, tokens),
        "val_exact": exact / max(1, examples),
    }
    return found | ({"val_kl_to_base": kl / max(1, tokens)} if policy.has_base else {})


def empty_batch() -> Batch:
    """Return a packed row without target tokens."""
    ids = torch.zeros(1, 2, dtype=torch.int32)
    return {"input_ids": ids, "loss_mask": ids > 0, "segment_ids": ids + 1}
