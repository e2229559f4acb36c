"""Reference implementation of the losses: their definitions in float64, one draw at a time.

It shares with otr only the uniforms and the mapping from a uniform to a token, so that both use the
same draws. Every loss is a sum of -weight * log p(token) with constant weights, its `terms`;
z-loss, which is not, is tested in test_objectives.py.

Shapes: T positions, V vocabulary, K draws.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from otr import IGNORE_INDEX, Objective
from otr.loss.draws import (
    HIT,
    WHICH_BLOCK,
    WHICH_ENTRY,
    RowKeys,
    draw_each,
    draw_seed,
    row_keys,
    uniforms,
)

Terms = list[list[tuple[int, float]]]


class Draws(NamedTuple):
    """Whether each draw is the target, and the token that it is otherwise."""

    hit_TK: Tensor
    miss_TK: Tensor


def generator(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def draws(logits_TV: Tensor, target_T: Tensor, o: Objective, number: int = 0) -> Draws:
    """Return the draws that a loss makes with ``generator(number)``."""
    q_TV = torch.softmax(logits_TV.detach().double() / o.temperature, -1)
    y_T1 = target_T.clamp(min=0)[:, None]
    seed, position_T = draw_seed(generator(number)), torch.arange(len(target_T))
    low_T, high_T = row_keys(seed, position_T)
    keys = RowKeys(low_T[:, None], high_T[:, None])
    hit, block, entry = (
        uniforms(keys, torch.arange(o.num_samples), word=word)
        for word in (HIT, WHICH_BLOCK, WHICH_ENTRY)
    )
    miss_TK = draw_each(q_TV.scatter(1, y_T1, 0), block, entry)
    return Draws(hit < q_TV.gather(1, y_T1), miss_TK)


def start(target_T: Tensor) -> Tensor:
    """Return some log-probabilities of the targets before training."""
    return -1.5 - 0.25 * (torch.arange(len(target_T), dtype=torch.float64) % 7)


def terms(logits_TV: Tensor, target_T: Tensor, o: Objective, drawn: Draws | None = None) -> Terms:
    """Return (token, weight) pairs of each position's loss; none if it is not scored.

    The probabilities before training are those of `start`.
    """
    start_T = start(target_T).tolist()
    logits_TV = logits_TV.detach().double()
    every_p = torch.softmax(logits_TV, -1).tolist()
    every_q = torch.softmax(logits_TV / o.temperature, -1).tolist()
    hits, misses = ([], []) if drawn is None else (drawn.hit_TK.tolist(), drawn.miss_TK.tolist())
    rows: Terms = []
    for t, y in enumerate(target_T.tolist()):
        p, q = every_p[t], every_q[t]
        if y == IGNORE_INDEX:
            rows.append([])
        elif o.name != "otr":
            kept = [a for a in range(len(p)) if logits_TV[t, a] > -math.inf]
            smooth = o.label_smoothing if o.name == "sft" else 0.0
            rows.append([(y, (1 - smooth) * _weight(o, p, y, start_T[t]))])
            rows[-1] += [(a, smooth / len(kept)) for a in kept if smooth]
        elif o.estimator == "expected":
            rows.append([(a, q[a] * _reward(o, a == y)) for a in range(len(q))])
        elif o.estimator == "half":
            share = (1 - q[y]) / o.num_samples
            rows.append([(a, share * _reward(o, False)) for a in misses[t]])
            rows[-1].append((y, q[y] * _reward(o, True)))
        else:
            a_K = [y if hit else miss for hit, miss in zip(hits[t], misses[t], strict=True)]
            rows.append([(a, _reward(o, a == y) / o.num_samples) for a in a_K])
    return rows


def _weight(o: Objective, p: list[float], y: int, start: float) -> float:
    """Return the factor of SFT's gradient of an objective that has one."""
    p_y, entropy = p[y], -sum(each * math.log(each) for each in p if each)
    if o.name == "idft" and p_y:
        g = min(2.0, max(0.1, math.exp(min(99, -(math.log(p_y) + entropy) / o.surprise_scale))))
    ratio = p_y / math.exp(start)
    return {
        "psft": lambda: ratio if ratio < 1 + o.clip else 0.0,
        "sft": lambda: 1.0,
        "dft": lambda: p_y,
        "power": lambda: p_y**o.exponent,
        "threshold": lambda: 1.0 if p_y >= o.threshold else 0.0,
        "clipped": lambda: p_y if p_y < o.threshold else 1.0,
        "chord": lambda: p_y - p_y**2,
        "eaft": lambda: min(1.0, entropy / math.log(20)),
        "idft": lambda: p_y**g if p_y else 0.0,
    }[o.name]()


def loss(logits_TV: Tensor, rows: Terms) -> Tensor:
    """Return the sum of -weight * log p(token), [T]."""
    logp = torch.log_softmax(logits_TV.detach().double(), -1).tolist()
    return torch.tensor(
        [-sum(w * logp[t][a] for a, w in row if w) for t, row in enumerate(rows)],
        dtype=torch.float64,
    )


def ratio_loss(logits_TV: Tensor, target_T: Tensor, o: Objective) -> Tensor:
    """Return the loss of PSFT by its definition, -min(r, clip(r, 1 - e, 1 + e)), [T]."""
    p_TV = torch.softmax(logits_TV.double(), -1)
    r_T = p_TV.gather(1, target_T[:, None])[:, 0] / start(target_T).exp()
    return -torch.minimum(r_T, r_T.clamp(1 - o.clip, 1 + o.clip))


def losses(logits_TV: Tensor, target_T: Tensor, o: Objective, rows: Terms) -> Tensor:
    """Return the loss of each position, whose terms are `rows`; 0 if it is not scored."""
    if not o.needs_start:
        return loss(logits_TV, rows)
    ratios_T = ratio_loss(logits_TV.detach(), target_T.clamp(min=0), o)
    return ratios_T.masked_fill(target_T == IGNORE_INDEX, 0)


def kl(base_TV: Tensor, logits_TV: Tensor) -> Tensor:
    """Return KL(base || p), [T], token by token."""
    rows = []
    for base, logits in zip(base_TV.double(), logits_TV.double(), strict=True):
        b, p = (torch.softmax(each, -1) for each in (base, logits))
        rows.append(sum(b[a] * torch.log(b[a] / p[a]) for a in range(len(b)) if b[a] > 0))
    return torch.stack(rows)


def gradient(logits_TV: Tensor, rows: Terms) -> Tensor:
    """Return the sum of weight * (p - e_token), [T, V]."""
    p_TV = torch.softmax(logits_TV.detach().double(), -1)
    total = torch.empty_like(p_TV)
    for t, row in enumerate(rows):
        of_p, of_token = 0.0, [0.0] * p_TV.shape[1]
        for a, weight in row:
            of_p += weight
            of_token[a] += weight
        total[t] = of_p * p_TV[t] - torch.tensor(of_token, dtype=torch.float64)
    return total


def magnitude(logits_TV: Tensor, rows: Terms) -> tuple[Tensor, Tensor]:
    """Return loss [T] and gradient [T, V] with all summands made positive.

    Terms that cancel in the sums count here, so the rounding of any way to compute the sums is
    proportional to this.
    """
    positive = [[(a, abs(weight)) for a, weight in row] for row in rows]
    p_TV = torch.softmax(logits_TV.detach().double(), -1)
    total_T1 = torch.tensor([[sum(weight for _, weight in row)] for row in positive]).double()
    twice = 2 * total_T1 * p_TV - gradient(logits_TV, positive)
    return loss(logits_TV, positive), twice


def _reward(o: Objective, hit: bool) -> float:
    return o.reward_scale * (1.0 if hit else o.mismatch_reward)
