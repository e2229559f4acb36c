"""The objectives' coefficients in a kernel: the only place that tells objectives apart."""

# ruff: noqa: PLR0913 - one argument per number of the formula

import triton
import triton.language as tl


@triton.jit
def coefficients(p, q, share, samples, beta, scale, OBJECTIVE: tl.constexpr):
    """Return P, Q, Y and M of a row's gradient, as `otr.loss.rows.gradient_coefficients` does.

    Args:
        p: the target's probability.
        q: the same at the temperature kappa.
        share: of the draws that are the target; q if hits are not drawn.
        samples: K.
        beta: the reward of a draw that is not the target.
        scale: factor of all rewards.
        OBJECTIVE: "sft", "dft", or otr's estimator.
    """
    zero = tl.zeros((), tl.float32)
    reward = scale * (share + beta * (1 - share))
    if OBJECTIVE == "sft":
        return zero + 1, zero, zero + 1, zero
    elif OBJECTIVE == "dft":
        return p, zero, p, zero
    elif OBJECTIVE == "expected":
        return reward, zero + scale * beta, scale * (1 - beta) * share, zero
    elif OBJECTIVE == "sampled":
        return reward, zero, scale * share, zero + scale * beta / samples
    else:
        tl.static_assert(OBJECTIVE == "half")
        return reward, zero, scale * share, scale * beta / samples * (1 - q)
