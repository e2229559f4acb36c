"""What bfloat16 training loses: ``python -m tests.benchmarks.precision --model DIR --data FILE``.

The same SFT steps on the same packed rows are taken in float32 and under autocast to bfloat16, from
the same weights, once per learning rate. In both the trained weights and AdamW's state are float32.
The table has the NLL of held-out rows under each result, computed in both precisions, and the share
of weights whose value rounded to bfloat16 has changed: the forward pass under autocast sees no
other. Differences are paired by row and come with twice their standard error.

Shapes: R held-out rows, T target tokens.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from otr import (
    DataConfig,
    ModelConfig,
    Objective,
    OptimConfig,
    TrainConfig,
    load_model,
    load_tokenizer,
)
from otr.data import pack, tokenize
from otr.loop.batch import Batch, PackedBatch
from otr.loop.loop import train
from otr.loop.policy import Policy

DTYPES = ("float32", "bfloat16")
COLUMNS = {"prompt": "question", "completion": "answer"}


@dataclass(frozen=True)
class Nll:
    """NLL of the held-out rows under one model in one precision."""

    sum_R: Tensor
    tokens_R: Tensor

    @property
    def mean(self) -> float:
        """NLL per token, in nats."""
        return float(self.sum_R.sum() / self.tokens_R.sum())

    def minus(self, other: "Nll") -> str:
        """Return the difference from another model's mean, with twice its standard error."""
        difference = self.mean - other.mean
        rest_R = self.sum_R - other.sum_R - difference * self.tokens_R
        error = float(rest_R.square().sum().sqrt() / self.tokens_R.sum())
        return f"{difference:+.5f} ± {2 * error:.5f}"


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    rows, held_out = batches(options)
    model = load_model(ModelConfig(options.model))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    base = evaluated(options.model, start, held_out)
    print(f"{options.steps} steps of {options.rows} rows of {options.length} tokens")
    print(
        "| lr | trained in | NLL in float32 | NLL in bfloat16 | bfloat16 - float32, each run in "
        "its own | weights changed in bfloat16 |\n|---|---|---|---|---|---|"
    )
    untrained = " | ".join(f"{base[dtype].mean:.5f}" for dtype in DTYPES)
    print(f"| | not trained | {untrained} | | |", flush=True)
    for lr in options.lr:
        own: dict[str, Nll] = {}
        for dtype in DTYPES:
            began = time.perf_counter()
            weights = trained(options, rows, lr, dtype)
            seconds = time.perf_counter() - began
            nll = evaluated(options.model, weights, held_out)
            own[dtype] = nll[dtype]
            difference = own[dtype].minus(own["float32"]) if dtype != "float32" else ""
            changed = sum(int((weights[n].bfloat16() != start[n].bfloat16()).sum()) for n in start)
            share = changed / sum(tensor.numel() for tensor in start.values())
            print(
                f"| {lr:g} | {dtype}, {seconds:.0f} s | {nll['float32'].mean:.5f} | "
                f"{nll['bfloat16'].mean:.5f} | {difference} | {share:.1%} |",
                flush=True,
            )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.precision")
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--data", required=True, help="JSONL with question and answer, as GSM8K")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-5, 5e-5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=2, help="packed rows per step")
    parser.add_argument("--held-out", type=int, default=24, help="packed rows to evaluate on")
    parser.add_argument("--length", type=int, default=256, help="tokens per packed row")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def batches(options: argparse.Namespace) -> tuple[list[Batch], list[Batch]]:
    """Return the packed batches of all steps, and the held-out rows one by one."""
    tokenizer = load_tokenizer(ModelConfig(options.model))
    count = options.rows * options.steps
    records = [json.loads(line) for line in Path(options.data).read_text().splitlines()]
    made = tokenize(
        records[: 4 * (count + options.held_out)],  # a packed row holds at most a few examples
        tokenizer,
        columns=COLUMNS,
        sequence_length=options.length,
    ).examples
    held = 2 * options.held_out

    def columns(examples: Sequence[tuple[list[int], list[bool]]], rows: int) -> list[Batch]:
        packed = {n: torch.from_numpy(c) for n, c in pack(examples, options.length).items()}
        order = torch.randperm(len(packed["input_ids"]), generator=torch.Generator().manual_seed(0))
        return [{n: c[some] for n, c in packed.items()} for some in order.split(rows)]

    train_rows, test_rows = columns(made[held:], options.rows), columns(made[:held], 1)
    return train_rows[: options.steps], test_rows[: options.held_out]


def trained(
    options: argparse.Namespace, rows: list[Batch], lr: float, dtype: str
) -> dict[str, Tensor]:
    """Return the float32 weights after all steps, taken in the precision `dtype`."""
    model_config = ModelConfig(options.model)
    config = TrainConfig(
        replace(model_config, dtype=dtype),
        DataConfig(("none",), sequence_length=options.length),
        Objective("sft"),
        OptimConfig(lr=lr, warmup_steps=min(5, options.steps)),
        max_steps=options.steps,
        global_batch_size=options.rows,
        micro_batch_size=options.rows,
    )
    model = load_model(model_config)
    train(model, rows, config, lambda metrics, snapshot: None)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@torch.no_grad()
def evaluated(model: str, weights: dict[str, Tensor], held_out: list[Batch]) -> dict[str, Nll]:
    """Return the NLL of the held-out rows under float32 weights, by precision."""
    loaded = load_model(ModelConfig(model)).eval()
    for name, parameter in loaded.named_parameters():
        parameter.copy_(weights[name])
    policy, found = Policy(loaded, Objective("sft")), {}
    for dtype in DTYPES:
        with policy.precision(dtype):
            nll_RT = [policy.predict(PackedBatch.of(batch)).nll_T.double() for batch in held_out]
        sums_R = torch.stack([nll_T.sum() for nll_T in nll_RT])
        found[dtype] = Nll(sums_R, torch.tensor([float(len(nll_T)) for nll_T in nll_RT]))
    return found


if __name__ == "__main__":
    main()
