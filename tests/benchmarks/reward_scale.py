"""What the reward scale changes under AdamW: ``python -m tests.benchmarks.reward_scale``.

It trains OTR on the built-in world at several reward scales, everything else equal, with the
default clipping, without clipping, and without clipping at a large epsilon. It prints a row per
run: NLL on the validation data, the mean gradient norm, the share of steps that were clipped, and
how far the weights end from those of the run at scale 1, as a share of the way that these went.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from otr.config import DataConfig, ModelConfig, TrainConfig
from otr.data import pack
from otr.loop.loop import train
from otr.loss.objective import Objective
from otr.models.load import load_model
from otr.models.tokenizer import load_tokenizer
from otr.training.corpus import tokenize_locally
from otr.training.store.read import COLUMNS
from pipelines.builtin.corpus import resolve_path

SCALES = (0.1, 0.3, 1.0, 3.0, 10.0)
OPTIMIZERS = {
    "clipped at 1": {},
    "no clipping": {"max_grad_norm": 1e9},
    "no clipping, eps 1e-4": {"max_grad_norm": 1e9, "eps": 1e-4},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reward_scale")
    parser.add_argument("--steps", type=int, default=60)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Path(folder), steps)
        print("| optimizer | reward scale | val NLL | gradient norm | clipped | differs |")
        print("|---|---|---|---|---|---|")
        for name, changes in OPTIMIZERS.items():
            own = replace(config, optim=replace(config.optim, **changes))
            runs = {scale: trained(own, scale) for scale in SCALES}
            start, reference = runs[1.0]["start"], runs[1.0]["end"]
            way = (reference - start).norm()
            for scale, run in runs.items():
                off = float((run["end"] - reference).norm() / way)
                norms = run["norms"]
                clipped = sum(norm > own.optim.max_grad_norm for norm in norms) / len(norms)
                print(
                    f"| {name} | {scale:g} | {run['nll']:.4f} | {sum(norms) / len(norms):.2f} | "
                    f"{clipped:.0%} | {off:.1%} |",
                    flush=True,
                )


def config_of(folder: Path, steps: int) -> TrainConfig:
    """The preset builtin's training, shorter."""
    train_file, valid, base = (
        resolve_path(f"builtin:{name}", folder, "") for name in ("train", "validation", "base")
    )
    config = TrainConfig(
        ModelConfig(base),
        DataConfig((train_file,), validation=(valid,), sequence_length=256),
        max_steps=steps,
        global_batch_size=8,
        micro_batch_size=8,
        eval_interval=steps,
        log_interval=1,
    )
    return replace(config, optim=replace(config.optim, lr=5e-4))


def trained(config: TrainConfig, scale: float) -> dict:
    """Train at a reward scale; return the flat weights before and after, and what was measured."""
    config = replace(config, objective=Objective("otr", num_samples=16, reward_scale=scale))
    model = load_model(config.model, load_tokenizer(config.model))
    start = flat(model)
    batches = list(rows(config.data, config))
    validation = list(rows(config.data.of_validation, config))[:8]
    reports: list[dict] = []
    looped = batches * (1 + config.max_steps // len(batches))
    train(
        model,
        looped,
        config,
        lambda metrics, _: reports.append(metrics),
        validation=validation,
    )
    norms = [report["grad_norm"] for report in reports]
    return {"start": start, "end": flat(model), "nll": reports[-1]["val_nll"], "norms": norms}


def rows(data: DataConfig, config: TrainConfig) -> list[dict]:
    """Micro-batches of a corpus, in its order."""
    size = config.micro_batch_size
    packed = pack(tokenize_locally(data, config.model, limit=3000), data.sequence_length)
    columns = [torch.from_numpy(packed[name]).split(size) for name in COLUMNS]
    parts = (dict(zip(COLUMNS, part, strict=True)) for part in zip(*columns, strict=True))
    return [part for part in parts if len(part["input_ids"]) == size]


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


if __name__ == "__main__":
    main()
