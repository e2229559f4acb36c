"""The variance of each estimator's gradient.

``python -m tests.benchmarks.variance --out docs/results/loss`` writes variance.svg and
variance.json for the built-in base model on validation rows. Figures are the variance of the
gradient with respect to the logits, summed over the vocabulary and averaged over tokens, divided by
the mean squared length of its expectation, as a function of K.

Besides `sampled` and `half` there is a baseline: R - E[R] in place of R, plus E[R] (p - q), without
which it would be biased if q differs from p. `expected` has no variance.

Shapes: T tokens, V vocabulary, K draws per token.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from otr import Objective, load_model
from otr.files import write_json
from otr.loss.rows import loss_and_gradient_
from otr.models.layout import Layout
from otr.models.parts import head, hidden_states
from otr.training.corpus import pack_locally
from pipelines.config.prepared import prepare
from pipelines.config.presets import builtin

SAMPLES = (1, 4, 16, 64, 256)
Slope = Callable[[Objective, int], Tensor]
"""(objective, seed) -> gradient [T, V]."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.variance")
    parser.add_argument("--out", type=Path, required=True, help="directory for the two files")
    parser.add_argument("--repeats", type=int, default=128, help="gradients per point")
    options = parser.parse_args()
    logits_TV, target_T = tokens()

    def slope(objective: Objective, seed: int) -> Tensor:
        slope_TV = logits_TV.clone()
        loss_and_gradient_(slope_TV, target_T, torch.arange(len(target_T)), objective, seed)
        return slope_TV

    def with_baseline(objective: Objective, seed: int) -> Tensor:
        """Reward the same draws with R - E[R], and add E[R] (p - q)."""
        kappa, beta = objective.temperature, objective.mismatch_reward
        hit_T = torch.softmax(logits_TV / kappa, 1).gather(1, target_T[:, None])
        reward_T1 = hit_T + beta * (1 - hit_T)
        every_reward_1 = replace(objective, mismatch_reward=1.0)
        expectation = slope(replace(every_reward_1, estimator="expected"), seed)
        return slope(objective, seed) - reward_T1 * (slope(every_reward_1, seed) - expectation)

    def curve(objective: Objective, estimate: Slope) -> list[float]:
        expectation = slope(replace(objective, estimator="expected"), 0)
        drawn = (replace(objective, num_samples=number) for number in SAMPLES)
        return [relative_variance(o, estimate, expectation, options.repeats) for o in drawn]

    figures = {}
    for kappa in (1.0, 1.3):
        for beta in (-0.1, -1.0):
            objective = Objective(temperature=kappa, mismatch_reward=beta)
            figures[f"kappa {kappa:g}, beta {beta:g}"] = {
                "sampled": curve(objective, slope),
                "sampled, with a baseline": curve(objective, with_baseline),
                "half": curve(replace(objective, estimator="half"), slope),
            }
    options.out.mkdir(parents=True, exist_ok=True)
    report = {
        "tokens": len(target_T),
        "repeats": options.repeats,
        "K": SAMPLES,
        "variance": figures,
    }
    write_json(options.out / "variance.json", report)
    draw(figures, options.out / "variance.svg")
    for title, curves in figures.items():
        for name, values in curves.items():
            print(f"{title}: {name:26}" + "".join(f"{value:12.4g}" for value in values))


def tokens(most: int = 600) -> tuple[Tensor, Tensor]:
    """Return logits and targets of the built-in model on validation rows."""
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        config = prepare(builtin(), Path(scratch)).config.train
        columns = pack_locally(config.data.of_validation, config.model, limit=100)
        model = load_model(config.model).eval()
        batch = {name: torch.from_numpy(column) for name, column in columns.items()}
        target_BS = batch["loss_mask"]
        before_BS = target_BS.roll(-1, dims=1)  # a row's first token is never a target
        hidden_ND = hidden_states(model, batch["input_ids"], Layout.of(batch["segment_ids"]))
        target_T = batch["input_ids"][target_BS].long()
        logits_TV = head(model).logits(hidden_ND[before_BS[batch["segment_ids"] > 0]])
    chosen = torch.randperm(len(target_T), generator=torch.Generator().manual_seed(0))[:most]
    return logits_TV[chosen], target_T[chosen]


def relative_variance(
    objective: Objective, estimate: Slope, expectation: Tensor, repeats: int
) -> float:
    """Return variance over squared mean; raise if the mean is not the expectation."""
    error = torch.stack([estimate(objective, seed) - expectation for seed in range(repeats)])
    variance = error.square().sum(2).mean()
    bias = error.mean(0).square().sum(1).mean()
    if not bias < 2 * variance / repeats:
        raise AssertionError(f"biased: {bias:.3g} against {variance / repeats:.3g}, {objective}")
    return float(variance / expectation.square().sum(1).mean())


def draw(figures: dict[str, dict[str, list[float]]], path: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "otr"
    grid, axes = plt.subplots(1, len(figures), figsize=(3 * len(figures), 3.2), sharey=True)
    for axis, (title, curves) in zip(axes, figures.items(), strict=True):
        for (name, values), marker in zip(curves.items(), "osx", strict=True):
            axis.loglog(SAMPLES, values, marker=marker, label=name)
        axis.set(title=title, xlabel="K, draws per token")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("variance / |mean gradient|²")
    axes[0].legend(fontsize=8)
    grid.tight_layout()
    grid.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
