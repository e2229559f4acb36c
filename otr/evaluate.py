"""How well a model predicts held-out rows, in figures that compare across objectives.

In: a model and micro-batches (contract 1). Out: a dict of means over all ranks.

Shapes: B rows, S row length, N tokens that are no padding, T scored ones.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from otr.model import head, hidden_states

CHUNK = 1024  # scored tokens that have logits at a time


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], dtype: str = "float32"
) -> dict[str, float]:
    """Score teacher-forced predictions.

    Returns:
        ``val_nll`` (nats a token), ``val_token_accuracy`` (share of tokens that are the model's
        first choice) and ``val_exact`` (share of examples whose tokens all are, which is the share
        that greedy decoding would reproduce exactly).
    """
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    for batch in batches:
        batch = {name: column.to(device) for name, column in batch.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            sums += _score(model, batch)
    if dist.is_initialized():
        dist.all_reduce(sums)
    model.train()
    nll, right, tokens, exact, examples = sums.tolist()
    return {
        "val_nll": nll / max(1, tokens),
        "val_token_accuracy": right / max(1, tokens),
        "val_exact": exact / max(1, examples),
    }


def _score(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """[nll, tokens right, tokens, examples right, examples] of one micro-batch."""
    real_BS = batch["segment_ids"] > 0
    scored_BS = torch.zeros_like(real_BS)
    scored_BS[:, :-1] = batch["loss_mask"][:, 1:]
    hidden_ND = hidden_states(model, batch["input_ids"], batch["segment_ids"])
    hidden_TD = hidden_ND[scored_BS[real_BS]]
    target_T = batch["input_ids"][:, 1:][scored_BS[:, :-1]].long()
    row_BS = torch.arange(len(real_BS), device=real_BS.device)[:, None].expand_as(real_BS)
    key_BS = row_BS * real_BS.shape[1] + batch["segment_ids"]
    examples, example_T = key_BS[scored_BS].unique(return_inverse=True)
    wrong = torch.zeros(len(examples), device=hidden_TD.device)
    nll = hidden_TD.new_zeros((), dtype=torch.double)
    for part in torch.arange(len(target_T), device=wrong.device).split(CHUNK):
        logits_TV = head(model).logits(hidden_TD[part])
        nll += cross_entropy(logits_TV, target_T[part], reduction="sum")
        wrong_T = (logits_TV.argmax(-1) != target_T[part]).float()
        wrong.index_add_(0, example_T[part], wrong_T)
    right = len(target_T) - wrong.sum()
    counts = [nll, right, len(target_T), (wrong == 0).sum(), len(examples)]
    return torch.stack([torch.as_tensor(c, device=wrong.device).double() for c in counts])
