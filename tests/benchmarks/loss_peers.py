"""The variants that the loss benchmark compares: otr's and those of other libraries.

`load` imports the packages of `VARIANTS` and returns losses: functions of hidden [T, D], weight
[V, D] and target [T] that return the sum over positions, ready for `backward`. Each peer runs with
its fastest settings; one that is not installed is left out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import otr
from otr import Objective
from otr.loss.objective import names

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SFT, DFT = Objective("sft"), Objective("dft")
OTR = Objective("otr", num_samples=256, mismatch_reward=-0.1, temperature=1.3)


@dataclass(frozen=True)
class Variant:
    objective: Objective
    load: Callable[[], Loss]
    """Imports the variant; raises ImportError if its package is missing."""
    cuda_only: bool = False


def ours(objective: Objective) -> Loss:
    return lambda hidden, weight, target: (
        otr.linear_token_loss(hidden, weight, target, objective).loss_sum
    )


def naive_otr() -> Loss:
    """Return OTR as the paper states it, with float32 logits as in transformers' own losses."""

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        logits_TV = F.linear(hidden_TD, weight_VD).float()
        q_TV = torch.softmax(logits_TV.detach() / OTR.temperature, -1)
        draw_TK = torch.multinomial(q_TV, OTR.num_samples, replacement=True)
        logp_TK = torch.log_softmax(logits_TV, -1).gather(1, draw_TK)
        reward_TK = torch.where(draw_TK == target_T[:, None], 1.0, OTR.mismatch_reward)
        return -(reward_TK * logp_TK).mean(1).sum()

    return loss


def full_ce() -> Loss:
    return lambda hidden, weight, target: F.cross_entropy(
        F.linear(hidden, weight), target, reduction="sum"
    )


def torch_lce(rows: int | None = None) -> Loss:
    """Return torch's own, in chunks of `rows`; None uses options=None, which holds all logits."""
    from torch.nn import LinearCrossEntropyOptions  # since torch 2.13

    options = None if rows is None else LinearCrossEntropyOptions(batch_chunk_size=rows)
    return partial(F.linear_cross_entropy, reduction="sum", options=options)


def trl(name: str) -> Loss:
    """Return the loss_type `name` of TRL's SFTTrainer with its kernel and tile.

    The trainer also computes entropy and top-1 hits for its metrics; without them it is faster.
    """
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as TILE

    def loss(hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor) -> Tensor:
        logp_T = ChunkedLogProbFunction.apply(
            hidden_TD, weight_VD, None, target_T, 1.0, TILE, None, 1.0, ("log_probs",)
        )[0]
        return -(logp_T * logp_T.exp().detach()).sum() if name == "dft" else -logp_T.sum()

    return loss


def liger(
    *,
    accum_dtype: torch.dtype | None = None,
    use_token_scaling: bool = False,
    ce_impl: str | None = None,
    chunk_mem_const: int = 1,
) -> Loss:
    """Return Liger's fused linear cross-entropy.

    Its chunk is the power of two above T D chunk_mem_const / V: 512 rows at T 16384, D 4096 and
    V 151936; with chunk_mem_const 8 it is 4096 rows, which read the head less often.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    if ce_impl is not None:
        import cutlass.cute  # noqa: F401 - Liger itself fails only when called

    options = {
        "bias": None,
        "ce_weight": None,
        "ignore_index": -100,
        "lse_square_scale": 0.0,
        "label_smoothing": 0.0,
        "reduction": "sum",
        "softcap": None,
        "return_z_loss": False,
        "accum_dtype": accum_dtype,
        "use_token_scaling": use_token_scaling,
        "return_token_accuracy": False,
        "return_predicted_tokens": False,
        "ce_impl": ce_impl,
        "ce_mode": None,
        "chunk_mem_const": chunk_mem_const,
    }
    return lambda hidden, weight, target: LigerFusedLinearCrossEntropyFunction.apply(
        hidden, weight, target, *options.values()
    )[0]


def cce() -> Loss:
    """Return Apple's, whose default filter drops gradients below bf16's resolution."""
    from cut_cross_entropy import linear_cross_entropy

    return partial(linear_cross_entropy, reduction="sum")


def quack() -> Loss:
    """Return QuACK's in chunks of 4096 rows; it selects its fastest pipeline itself."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return partial(chunked_linear_cross_entropy, chunk_size=4096, reduction="sum")


OURS = {
    "sft": SFT,
    "dft": DFT,
    "otr-k1": Objective("otr", num_samples=1, mismatch_reward=-0.1, temperature=1.3),
    "otr-k16": Objective("otr", num_samples=16, mismatch_reward=-0.1, temperature=1.3),
    "otr-k256": OTR,
    "otr-expected": Objective("otr", mismatch_reward=-0.1, temperature=1.3, estimator="expected"),
}
WEIGHTED = [name for name in names() if Objective(name).is_weighted and name != "dft"]
OURS |= {name: Objective(name) for name in WEIGHTED}
PEERS = {
    "naive-otr": Variant(OTR, naive_otr),
    "full-ce": Variant(SFT, full_ce),
    "torch-lce": Variant(SFT, torch_lce),
    "torch-lce-128": Variant(SFT, partial(torch_lce, 128)),
    "torch-lce-512": Variant(SFT, partial(torch_lce, 512)),
    "trl-nll": Variant(SFT, partial(trl, "nll")),
    "trl-dft": Variant(DFT, partial(trl, "dft")),
    "liger": Variant(SFT, liger, cuda_only=True),
    "liger-fp32": Variant(SFT, partial(liger, accum_dtype=torch.float32), cuda_only=True),
    "liger-wide": Variant(SFT, partial(liger, chunk_mem_const=8), cuda_only=True),
    "liger-cute": Variant(
        SFT, partial(liger, ce_impl="nvidia-cutedsl", chunk_mem_const=8), cuda_only=True
    ),
    "liger-dft": Variant(DFT, partial(liger, use_token_scaling=True), cuda_only=True),
    "cce": Variant(SFT, cce, cuda_only=True),
    "quack": Variant(SFT, quack, cuda_only=True),
}
VARIANTS = {name: Variant(obj, partial(ours, obj)) for name, obj in OURS.items()} | PEERS


def load(names: Iterable[str], device: str) -> dict[str, Loss]:
    """Return the losses of `names` that run on this machine; print which are left out and why."""
    losses = {}
    for name in names:
        variant = VARIANTS[name]
        if variant.cuda_only and device != "cuda":
            continue
        try:
            losses[name] = variant.load()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return losses
