"""`otr.loss.rows.loss_and_gradient_` in Triton: four kernels, and no other work on the device.

1. `statistics` reads the logits of each row; with a base model, also the base's.
2. `losses` reads the blocks that misses are drawn from, BLOCK logits each.
3. `gradient_` reads the logits (and the base's) and writes their gradient over them.
4. `write_` writes the few entries that target and misses touch, each rounded once from float32.

Shapes: C rows of logits in a chunk (one per scored position), V vocabulary, N blocks, K draws.
"""

from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float, Int
from torch import Tensor

from otr.loss.draws import BLOCK, HIT, WHICH_BLOCK, WHICH_ENTRY, signed
from otr.loss.kernels.coefficients import compiled_form
from otr.loss.kernels.common import RECORD
from otr.loss.kernels.passes import gradient_, statistics
from otr.loss.kernels.tokens import losses, write_
from otr.loss.objective import Objective
from otr.loss.rows import ALONE, FIGURES, Compared

SPAN = 2048  # logits that a program processes at once; a multiple of BLOCK
LOAD_BYTES = 16  # that a thread loads at once
DRAWS = 32  # draws whose blocks of logits a program processes at once
LANES = 256  # draws that a program processes at once, two per thread
OTHERS = 16  # draws that each of LANES is compared with at once
CDF = 1024  # blocks that a program sums at once


@dataclass(frozen=True)
class Variant:
    """An objective with or without a soft cap, which kernels are compiled for."""

    objective: Objective
    capped: bool

    def constants(self, kernel: str, item_bytes: int) -> dict[str, object]:
        """Return the compile-time arguments of a kernel for logits of `item_bytes`."""
        of = self.objective
        drawn = of.draws_misses
        if kernel == "statistics":
            return {
                "TEMPERED": of.uses_q and not drawn,  # block sums give q's otherwise
                "BLOCKS": drawn,
                "CAPPED": self.capped,
                "SPAN": SPAN,
                "BLOCK": BLOCK,
                "PER": LOAD_BYTES // item_bytes,
            }
        if kernel == "losses":
            return {
                "OBJECTIVE": of,
                "FORM": compiled_form(of),
                "WEIGHTED": of.is_weighted,
                "RATIO": of.needs_start,
                "PENALTY": of.has_penalty or of.needs_start,
                "ROLLS_OUT": of.rolls_out,
                "HITS": of.draws_hits,
                "DRAWN": drawn,
                "TEMPERED": of.uses_q,
                "DENSE_Q": of.dense_q,
                "CAPPED": self.capped,
                "BLOCK": BLOCK,
                "DRAWS": DRAWS,
                "LANES": LANES,
                "OTHERS": OTHERS,
                "CDF": CDF,
                "HIT": HIT,
                "WHICH_BLOCK": WHICH_BLOCK,
                "WHICH_ENTRY": WHICH_ENTRY,
            }
        if kernel == "gradient_":
            return {"DENSE_Q": of.dense_q, "CAPPED": self.capped, "SPAN": SPAN}
        return {"DRAWN": drawn, "LANES": LANES}


def loss_and_gradient_(  # noqa: PLR0913 - the signature of a backend
    logits_CV: Float[Tensor, "C V"],
    target_C: Int[Tensor, " C"],
    position_C: Int[Tensor, " C"],
    objective: Objective,
    seed: int,
    softcap: float | None = None,
    factor: Float[Tensor, ""] | None = None,
    weight_C: Float[Tensor, " C"] | None = None,
    compared: Compared = ALONE,
) -> Float[Tensor, "F C"]:
    """Return the figures of each row; replace the logits by their gradient.

    Arguments and figures are those of `otr.loss.rows.loss_and_gradient_`.
    """
    rows, width = logits_CV.shape
    stride = logits_CV.stride(0)
    variant = Variant(objective, softcap is not None)
    drawn = objective.draws_misses
    blocks = triton.cdiv(width, SPAN) * (SPAN // BLOCK) if drawn else 0
    samples = objective.num_samples
    places = triton.cdiv(samples, DRAWS) * DRAWS if drawn else 0
    # An int would be another type, and 1 a constant: each would be compiled anew.
    cap, inverse_kappa = float(softcap or 0), 1 / objective.kappa

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return logits_CV.new_empty(shape, dtype=dtype)

    record = scratch(rows, RECORD.value)
    figures = scratch(FIGURES + (compared.base_CV is not None), rows)
    high, total, cdf = (scratch(rows, blocks) for _ in range(3))
    token = scratch(rows, places, dtype=torch.int32)
    value = scratch(*token.shape)
    item = logits_CV.element_size()
    start, base = compared.start_C, compared.base_CV
    base_record = parts = base_stride = kl_weight = None
    spans = triton.cdiv(width, SPAN)

    statistics[(rows,)](
        logits_CV, record, high, total, width, stride, blocks, inverse_kappa, cap,
        **variant.constants("statistics", item),
    )  # fmt: skip
    if base is not None:
        base_record, parts = scratch(rows, RECORD.value), scratch(rows, spans)
        base_stride, kl_weight = base.stride(0), float(compared.kl_weight)
        plain = {"TEMPERED": False, "BLOCKS": False}
        statistics[(rows,)](
            base, base_record, high, total, width, base_stride, blocks, 1.0, cap,
            **variant.constants("statistics", item) | plain,
        )  # fmt: skip
    losses[(rows,)](
        logits_CV, target_C, position_C, factor, weight_C, start, base, base_record, record, high,
        total, cdf, token, value, figures, width, stride, base_stride, blocks, blocks.bit_length(),
        samples, places, signed(seed), signed(seed >> 32), inverse_kappa, cap, kl_weight,
        **variant.constants("losses", item),
    )  # fmt: skip
    gradient_[(rows, spans)](
        logits_CV, record, base, base_record, parts, width, stride, base_stride, inverse_kappa, cap,
        **variant.constants("gradient_", item),
    )  # fmt: skip
    write_[(rows,)](
        logits_CV, target_C, token, value, record, parts, None if base is None else figures, stride,
        places, None if base is None else spans, kl_weight,
        **variant.constants("write_", item),
    )  # fmt: skip
    return figures
