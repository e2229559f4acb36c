"""How well a model predicts held-out rows, in figures that compare across objectives.

In: a `Policy` and micro-batches (contract 1). Out: a dict of means over all ranks.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from otr.loop import parallel
from otr.loop.policy import Batch, Policy


@torch.no_grad()
def evaluate(policy: Policy, batches: Sequence[Batch], dtype: str = "float32") -> dict[str, float]:
    """Score teacher-forced predictions. Every rank calls this with batches of its own, or none.

    Returns:
        ``val_nll`` (nats a token), ``val_token_accuracy`` (share of tokens that are the model's
        first choice) and ``val_exact`` (share of examples whose tokens all are, which is the share
        that greedy decoding would reproduce exactly).
    """
    policy.eval()
    device = policy.device
    passes = torch.tensor(len(batches), device=device)
    if parallel.world() > 1:
        dist.all_reduce(passes, dist.ReduceOp.MAX)
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for i in range(int(passes)):
        # Under fsdp a forward pass is one of all ranks.
        batch = batches[i] if i < len(batches) else _nothing()
        batch = {name: column.to(device) for name, column in batch.items()}
        with policy.precision(dtype):
            sums += policy.score(batch)
    policy.train()
    nll, right, tokens, exact, examples = parallel.total(sums).tolist()
    return {
        "val_nll": nll / max(1, tokens),
        "val_token_accuracy": right / max(1, tokens),
        "val_exact": exact / max(1, examples),
    }


def _nothing() -> Batch:
    """A row of which no token is scored."""
    ids = torch.zeros(1, 2, dtype=torch.int32)
    return {"input_ids": ids, "loss_mask": ids > 0, "segment_ids": ids + 1}
