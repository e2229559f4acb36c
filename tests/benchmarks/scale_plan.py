"""Estimated cost of large runs: ``python -m tests.benchmarks.scale_plan``.

It prints a Markdown table for two published architectures. Memory comes from the project's planner
(`otr.memory.planner`, which reads only a model's config); network, storage, time and price come
from arithmetic on the constants below, none of which was measured here.

Bytes are those of the current code: weights, gradients and both moments in float32, matrix products
in bfloat16; FSDP2 gathers the weights twice per pass in bfloat16 and reduces gradients in float32;
every rank writes its share of the model in float32 and of the moments.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from evals import hardware, shards
from otr.config import DataConfig, MemoryConfig, ModelConfig, TrainConfig, Workers
from otr.memory.planner import Plan, plan
from tests.benchmarks.train_bars import TERAFLOPS, flops_per_token

GB, GIB, TB = 1e9, 2**30, 1e12
DEVICE_BYTES = int(79.6 * GIB)  # memory that an H100 of 80 GB reports
GPUS_A_NODE = 8
MFU = 0.4  # assumed
NVLINK, NICS, LINK_SHARE = 450 * GB, 400 * GB, 0.7  # bytes/s per GPU, per node; achieved share
TO_HOST, STORE = 25 * GB, 1 * GB  # bytes/s of a rank: device to host, to storage
BYTES_A_TOKEN = 4  # English text, with a vocabulary of 100,000 or more
ON_DEMAND, SPOT, STORED = 3.90, 2.25, 0.023  # dollars per GPU-hour (twice) and per GB-month
LAYERS = {"8B": Qwen3Config, "70B": LlamaConfig}
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288}
    | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"head_dim": 128, "max_position_embeddings": 40960},  # Qwen3-8B
    "70B": {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672}
    | {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    | {"head_dim": 128, "max_position_embeddings": 8192},  # Llama-3-70B
}


@dataclass(frozen=True)
class Case:
    """A trial of `steps` steps of `global_batch_size` packed rows."""

    shape: str
    gpus: int
    global_batch_size: int
    micro_batch_size: int
    sequence_length: int = 4096
    steps: int = 500


CASES = (Case("8B", 8, 64, 4), Case("70B", 64, 256, 2))


@dataclass(frozen=True)
class Figures:
    """Figures of a case, in bytes and seconds."""

    case: Case
    plan: Plan
    weights: int

    @property
    def nodes(self) -> int:
        return max(1, self.case.gpus // GPUS_A_NODE)

    @property
    def passes(self) -> int:
        """Forward passes per step and GPU."""
        return self.case.global_batch_size // (self.case.micro_batch_size * self.case.gpus)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all GPUs at the assumed MFU, activation checkpointing included."""
        flops = flops_per_token(SHAPES[self.case.shape], self.case.sequence_length)
        return self.case.gpus * MFU * TERAFLOPS["H100"] * 1e12 / flops

    @property
    def trial_tokens(self) -> int:
        return self.case.steps * self.plan.step_tokens

    @property
    def trial_hours(self) -> float:
        return self.trial_tokens / self.tokens_per_second / 3600

    @property
    def pass_seconds(self) -> float:
        return self.plan.step_tokens / self.passes / self.tokens_per_second

    @property
    def pass_bytes(self) -> float:
        """Bytes that a GPU receives per pass: weights twice in bfloat16, gradients in float32."""
        return 8 * self.weights * (1 - 1 / self.case.gpus)

    @property
    def link_seconds(self) -> float:
        """Seconds of communication per pass; a node receives what it lacks once, on all links."""
        if self.nodes == 1:
            return self.pass_bytes / (LINK_SHARE * NVLINK)
        return 8 * self.weights * (1 - 1 / self.nodes) / (LINK_SHARE * NICS)

    @property
    def host_bytes(self) -> float:
        """Of a node: its ranks' copies of their shards and the files that they write."""
        return min(self.case.gpus, GPUS_A_NODE) * self.plan.save_bytes

    @property
    def scoring_gpus(self) -> int:
        """Fewest GPUs of a replica of the engine: for the weights in bfloat16 and one request."""
        config = LAYERS[self.case.shape](**SHAPES[self.case.shape])
        request = _cache_bytes(config) * config.max_position_embeddings
        gib = (2 * self.weights + request) / GIB
        return shards.fitting(config, gib, DEVICE_BYTES / GIB)[0]

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit into the KV cache of such a replica."""
        config = LAYERS[self.case.shape](**SHAPES[self.case.shape])
        room = self.scoring_gpus * shards.room(DEVICE_BYTES / GIB) * GIB - 2 * self.weights
        return int(room / _cache_bytes(config))

    @property
    def stall_seconds(self) -> float:
        """Seconds that a save blocks: each rank copies its shards to the host."""
        return self.share_bytes / TO_HOST

    @property
    def share_bytes(self) -> float:
        """Bytes of a checkpoint that each rank writes."""
        return 12 * self.weights / self.case.gpus


ROWS: dict[str, tuple[Callable[[Figures], str], str]] = {
    "weights": (lambda f: f"{f.weights / GB:.2f} B", "shape"),
    "strategy, rows per pass, passes per step": (
        lambda f: f"{f.plan.strategy}, {f.case.micro_batch_size}, {f.passes}",
        "chosen",
    ),
    "per GPU: weights": (lambda f: _gib(f.plan.device.parameters), "planner"),
    "gradients": (lambda f: _gib(f.plan.device.gradients), "planner"),
    "AdamW": (lambda f: _gib(f.plan.device.optimizer), "planner"),
    "activations, checkpointed": (lambda f: _gib(f.plan.device.activations), "planner"),
    "loss": (lambda f: _gib(f.plan.device.loss), "planner"),
    "total, of 79.6 GiB": (lambda f: _gib(f.plan.device.total), "planner"),
    "host memory per node at a save": (lambda f: _gib(f.host_bytes), "planner"),
    "to load the model: rank 0's memory, float32": (lambda f: _gib(4 * f.weights), "computed"),
    "to score: GPUs per replica, at least": (lambda f: f"{f.scoring_gpus}", "computed"),
    "weights on each of them, bfloat16": (
        lambda f: _gib(2 * f.weights / f.scoring_gpus),
        "computed",
    ),
    "KV cache in the rest of all of them": (lambda f: f"{f.cache_tokens:,} tokens", "computed"),
    "host memory of the replica's node for verification": (
        lambda f: _gib(4 * f.weights),
        "computed",
    ),
    "FLOPs per token": (
        lambda f: f"{flops_per_token(SHAPES[f.case.shape], f.case.sequence_length):.3g}",
        "computed",
    ),
    "tokens/s": (lambda f: f"{f.tokens_per_second:,.0f}", "MFU assumed"),
    "seconds per pass": (lambda f: f"{f.pass_seconds:.2f}", "MFU assumed"),
    "received per GPU and pass": (lambda f: f"{f.pass_bytes / GB:,.0f} GB", "computed"),
    "seconds for that on its links": (lambda f: f"{f.link_seconds:.2f}", "links assumed"),
    "a checkpoint: model, moments": (
        lambda f: f"{4 * f.weights / GB:,.0f} + {8 * f.weights / GB:,.0f} GB",
        "computed",
    ),
    "seconds that a save blocks training": (lambda f: f"{f.stall_seconds:.1f}", "speeds assumed"),
    "minutes that each rank writes": (
        lambda f: f"{f.share_bytes / STORE / 60:.1f}",
        "1 GB/s assumed",
    ),
    "bytes read to score a model": (lambda f: f"{12 * f.weights / GB:,.0f} GB", "computed"),
    "a trial: tokens": (lambda f: f"{f.trial_tokens / 1e6:,.0f} M", "chosen"),
    "hours": (lambda f: f"{f.trial_hours:.2f}", "MFU assumed"),
    "dollars on demand, spot": (lambda f: _dollars(f.trial_hours * f.case.gpus), "prices assumed"),
    "1,000 trials: checkpoints of all": (
        lambda f: f"{12 * f.weights * 1000 / TB:,.0f} TB",
        "computed",
    ),
    "the same with weights in bfloat16 alone": (
        lambda f: f"{2 * f.weights * 1000 / TB:,.0f} TB",
        "computed",
    ),
    "dollars per month for the former": (
        lambda f: f"{12 * f.weights * 1000 / GB * STORED:,.0f}",
        "price assumed",
    ),
    "days, one after another": (lambda f: f"{1000 * f.trial_hours / 24:,.0f}", "MFU assumed"),
    "thousand dollars on demand, spot": (
        lambda f: _dollars(f.trial_hours * f.case.gpus),
        "prices assumed",
    ),
    "days for 1 TB of text, once": (
        lambda f: f"{TB / BYTES_A_TOKEN / f.tokens_per_second / 86400:,.0f}",
        "MFU assumed",
    ),
}


def main() -> None:
    found = [figures(case) for case in CASES]
    heads = ["", *(f"{case.shape} on {case.gpus}" for case in CASES), "source"]
    lines = [heads, ["---"] * len(heads)]
    for name, (show, source) in ROWS.items():
        lines.append([name, *map(show, found), source])
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def figures(case: Case) -> Figures:
    """Return the planner's figures of a case."""
    with tempfile.TemporaryDirectory() as directory:
        written(case.shape, Path(directory))
        config = TrainConfig(
            ModelConfig(directory, dtype="bfloat16"),
            DataConfig(("corpus.jsonl",), sequence_length=case.sequence_length),
            memory=MemoryConfig(gradient_checkpointing=True),
            workers=Workers(case.gpus, gpus=1),
            max_steps=case.steps,
            global_batch_size=case.global_batch_size,
            micro_batch_size=case.micro_batch_size,
        )
        return Figures(case, plan(config, DEVICE_BYTES), weights(SHAPES[case.shape]))


def written(shape: str, directory: Path) -> Sequence[Path]:
    """Write the config of an architecture as a model directory has it."""
    config: PretrainedConfig = LAYERS[shape](**SHAPES[shape], tie_word_embeddings=False)
    config.save_pretrained(directory)
    return [*directory.iterdir()]


def weights(shape: dict[str, int]) -> int:
    """Return the number of weights, without norms."""
    wide, heads = shape["hidden_size"], shape["head_dim"]
    attention = 2 * wide * heads * (shape["num_attention_heads"] + shape["num_key_value_heads"])
    layer = attention + 3 * wide * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer + 2 * shape["vocab_size"] * wide


def _cache_bytes(config: PretrainedConfig) -> int:
    return hardware.cache_bytes_per_token(config, "bfloat16") or 0


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB"


def _dollars(hours: float) -> str:
    return f"{hours * ON_DEMAND:,.0f}, {hours * SPOT:,.0f}"


if __name__ == "__main__":
    main()
