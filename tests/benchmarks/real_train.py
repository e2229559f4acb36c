"""`otr train` compared with a bare loop: ``python -m tests.benchmarks.real_train --model DIR``.

Both fine-tune a real model with SFT in bfloat16 on the same packed rows, in turns. `otr train` is
the command itself, with Ray, its reader and its reports. The bare loop is transformers and torch
alone: autocast, a mask that separates the packed examples, logits of the target tokens only, cross
entropy, AdamW. Tokens per second leave out the first step and the last, which saves.

Shapes: B packed rows, S sequence length, D width, T target tokens, V vocabulary.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from otr.config import TrainConfig
from otr.models.layout import position_ids
from otr.optim import learning_rate
from otr.training.store.feed import Batch, micro_batches
from otr.training.store.read import PackedStore
from pipelines.config.run_json import read_run
from tests.assets.mlflow_server import stored_runs
from tests.benchmarks.loss import describe_machine

BAR = 0.95
RAYS_NICENESS = 15  # of Ray's workers; other work would slow one contender alone
GSM8K = ("prompt=question", "completion=answer")


@dataclass(frozen=True)
class Speed:
    """Speed and loss of one contender's run."""

    tokens_per_second: float
    nll: float
    """In nats per token, of the last timed step."""


def main() -> None:
    options = parse_options()
    os.nice(RAYS_NICENESS)
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        for number in range(options.rounds):
            output = Path(folder, str(number))
            ours = otr_train(options, output)
            config = read_run(output / "run" / "run.json").train
            bare = bare_loop(config, output)
            ratios.append(ours.tokens_per_second / bare.tokens_per_second)
            print(f"otr train {ours}, bare loop {bare}, ratio {ratios[-1]:.3f}", flush=True)
    shape = f"{config.data.sequence_length}x{config.global_batch_size}x{config.micro_batch_size}"
    print(f"{describe_machine('cpu')}, {config.model.dtype}, {shape}")
    met = "yes" if median(ratios) >= BAR else "NO"
    print(f"tokens/s, otr train / bare loop: {median(ratios):.3f}, bar >= {BAR}, met: {met}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.real_train")
    add = parser.add_argument
    add("--model", required=True, help="Hugging Face directory")
    add("--data", default=f"{os.environ.get('OTR_BENCHMARKS', '')}/gsm8k/train.jsonl")
    add("--columns", nargs="*", default=GSM8K)
    add("--rows", type=int, default=8, help="packed rows per step")
    add("--steps", type=int, default=7)
    add("--rounds", type=int, default=2)
    return parser.parse_args()


def otr_train(options: argparse.Namespace, output: Path) -> Speed:
    """Run the command, which chooses everything but the size of the steps."""
    at = options.steps - 1  # this report covers all steps but the first and the last
    words = ["--model", options.model, "--data", options.data, "--columns", *options.columns]
    words += ["--train.global-batch-size", str(options.rows), "--max-steps", str(options.steps)]
    words += ["--train.log-interval", str(at), "--train.objective.name", "sft"]
    words += ["--no-serve-check", "--output", str(output), "--name", "run"]
    command = [sys.executable, "-m", "pipelines.cli", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"otr train ended with {done.returncode}: {done.stderr}")
    metrics = stored_runs(f"sqlite:///{output}/mlflow.db")["train-seed0"].metrics
    values = {key.rpartition("/")[2]: dict(history).get(at) for key, history in metrics.items()}
    return Speed(values["tokens_per_second"] or 0.0, values["nll"] or 0.0)


def bare_loop(config: TrainConfig, output: Path) -> Speed:
    """Take the same steps, on the rows that the command packed, with transformers and torch."""
    torch.set_num_threads(int(config.workers.cpus))
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=config.optim.weight_decay, fused=True
    )
    [packed] = (output / "packed").iterdir()
    micro = micro_batches(PackedStore(packed), config, step=0, rank=0)
    tokens, start, nll = 0, 0.0, 0.0
    for step in range(config.max_steps - 1):
        if step == 1:
            tokens, start = 0, time.perf_counter()
        batches = [next(micro) for _ in range(config.accumulation)]
        targets = sum(int(batch["loss_mask"][:, 1:].sum()) for batch in batches)
        nll = 0.0
        for batch in batches:
            loss = summed_loss(model, batch) / targets
            loss.backward()
            nll += float(loss.detach())
            tokens += int((batch["segment_ids"] > 0).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step, config.max_steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Speed(tokens / (time.perf_counter() - start), nll)


def summed_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Return the summed cross entropy of the target tokens of packed rows."""
    ids_BS, segments_BS = batch["input_ids"].long(), batch["segment_ids"]
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    allowed_BSS = same_BSS & torch.ones(same_BSS.shape[1:], dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16):
        hidden_BSD = model.model(
            input_ids=ids_BS,
            attention_mask=allowed_BSS[:, None],
            position_ids=position_ids(segments_BS),
            use_cache=False,
        ).last_hidden_state
        target_BS = batch["loss_mask"][:, 1:]
        logits_TV = model.lm_head(hidden_BSD[:, :-1][target_BS])
    return cross_entropy(logits_TV.float(), ids_BS[:, 1:][target_BS], reduction="sum")


if __name__ == "__main__":
    main()
