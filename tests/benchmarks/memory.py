"""The planner's estimates and measured steps: `python -m tests.benchmarks.memory [NAME..]`.

Prints planned and measured peaks of all cases or the named ones, and the error in %. Each case
takes real steps on the CPU, with one process per worker. The measure is the largest resident size
of a worker during two steps, minus that after a step of a small model. It covers the step alone:
writing a checkpoint on a CPU needs another copy of weights and moments.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, Qwen3Config

from evals.settings import free_port
from otr.config import (
    DataConfig,
    LoraConfig,
    MemoryConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    Workers,
)
from otr.loss.objective import Objective
from otr.memory.planner import plan
from otr.models.load import as_base, empty_model
from otr.models.quantize import check_quantized, layers_to_quantize

MIB = 2**20
IMMEDIATE_FREE = {  # makes glibc return freed memory at once
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Case:
    """A model of a made-up size, and the configuration of its step."""

    name: str
    rows: int
    length: int
    layers: int = 6
    width: int = 512
    vocabulary: int = 32_000
    tied: bool = True
    steps: int = 1
    """Forward passes per optimizer step."""
    dtype: str = "float32"
    again: bool = False
    """Gradient checkpointing."""
    rank: int = 0
    attention: str = "auto"
    objective: str = "otr"
    workers: int = 1
    strategy: str = "auto"
    quantize: str = "none"
    optimizer: str = "adamw"
    freeze: tuple[str, ...] = ()
    kl_weight: float = 0.0


CASES = (
    Case("small", 16, 256, 4, 192, 1024),
    Case("small bf16", 16, 256, 4, 192, 1024, dtype="bfloat16"),
    Case("small checkpointed", 32, 512, 4, 192, 1024, again=True),
    Case("few tokens", 2, 256, tied=False),
    Case("few tokens, twice", 2, 256, tied=False, steps=2),
    Case("untied", 4, 512, tied=False),
    Case("bf16", 4, 512, tied=False, dtype="bfloat16"),
    Case("bf16 checkpointed", 4, 512, steps=2, dtype="bfloat16", again=True),
    Case("checkpointed", 4, 512, again=True),
    Case("sft", 4, 512, objective="sft"),
    Case("sdpa", 2, 512, attention="sdpa"),
    Case("eager", 2, 512, attention="eager"),
    Case("lora", 4, 512, rank=8),
    Case("lora bf16 checkpointed", 4, 512, rank=8, dtype="bfloat16", again=True),
    Case("qlora", 4, 512, rank=8, quantize="nf4"),
    Case("qlora bf16 checkpointed", 4, 512, rank=8, quantize="nf4", dtype="bfloat16", again=True),
    Case("deep", 2, 256, layers=12),
    Case("ddp", 4, 512, workers=2, strategy="ddp"),
    Case("ddp, few tokens, twice", 2, 256, steps=2, workers=2, strategy="ddp"),
    Case("ddp lora", 4, 512, rank=8, workers=2, strategy="ddp"),
    Case("fsdp", 4, 512, workers=2, strategy="fsdp"),
    Case("fsdp, few tokens, untied", 2, 256, tied=False, workers=2, strategy="fsdp"),
    Case(
        "fsdp bf16 checkpointed", 4, 512, dtype="bfloat16", again=True, workers=2, strategy="fsdp"
    ),
    Case("fsdp lora", 4, 512, rank=8, workers=2, strategy="fsdp"),
    Case("8 bits", 2, 256, tied=False, optimizer="adamw_8bit"),
    Case("muon", 2, 256, tied=False, optimizer="muon"),
    Case("muon fsdp", 2, 256, tied=False, optimizer="muon", workers=2, strategy="fsdp"),
    Case("adafactor", 2, 256, tied=False, optimizer="adafactor"),
    Case("with base", 2, 256, tied=False, kl_weight=0.1),
    Case("with base bf16", 2, 256, tied=False, dtype="bfloat16", kl_weight=0.1),
    Case("with base fsdp", 2, 256, tied=False, workers=2, strategy="fsdp", kl_weight=0.1),
    Case("half frozen", 2, 256, freeze=("lm_head.*", "model.layers.[0-2].*")),
    Case("fsdp deep", 2, 256, layers=12, width=768, workers=2, strategy="fsdp"),
)


def written(case: Case, directory: Path) -> TrainConfig:
    """Return the case's run; write its model's config, without weights, to `directory`."""
    Qwen3Config(
        hidden_size=case.width,
        intermediate_size=3 * case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.width // 32,
        num_key_value_heads=max(1, case.width // 64),
        head_dim=32,
        vocab_size=case.vocabulary,
        tie_word_embeddings=case.tied,
        max_position_embeddings=4096,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(directory)
    return TrainConfig(
        model=ModelConfig(str(directory), dtype=case.dtype, attention=case.attention),  # type: ignore[arg-type]
        data=DataConfig(("-",), sequence_length=case.length),
        objective=Objective(case.objective),  # type: ignore[arg-type]
        optim=OptimConfig(optimizer=case.optimizer),  # type: ignore[arg-type]
        lora=LoraConfig(rank=case.rank, quantize=case.quantize),  # type: ignore[arg-type]
        memory=MemoryConfig(case.strategy, gradient_checkpointing=case.again),  # type: ignore[arg-type]
        workers=Workers(case.workers),
        global_batch_size=case.rows * case.steps * case.workers,
        micro_batch_size=case.rows,
        freeze=case.freeze,
        kl_weight=case.kl_weight,
    )


def measured(case: Case) -> int:
    """Return the measured bytes of the worker that holds most."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--one", json.dumps(vars(case))]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            command,
            env=os.environ
            | IMMEDIATE_FREE
            | rendezvous
            | {"RANK": str(n), "WORLD_SIZE": str(case.workers)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(case.workers)
    ]
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            for worker in workers:
                worker.kill()  # it waits for the failed one
        time.sleep(0.1)
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        raise RuntimeError(f"{case.name} failed; its error is above")
    return max(int(text.split()[-1]) for text in outputs)


def planned(case: Case) -> int:
    """Return the planned bytes of a worker."""
    with TemporaryDirectory() as directory:
        return plan(written(case, Path(directory)), 2**40).device.total


def _take_steps(case: Case) -> int:
    if case.workers > 1:
        dist.init_process_group("gloo")
    with TemporaryDirectory() as directory:
        config = written(case, Path(directory))
        small = replace(case, layers=1, width=64, vocabulary=300, length=16)
        train_briefly(written(small, Path(directory) / "small"), 300)
        gc.collect()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        train_briefly(config, case.vocabulary)
    return _resident("VmHWM") - before


def train_briefly(config: TrainConfig, vocabulary: int, device: str = "cpu") -> None:
    """Take two steps, without the checkpoint that would follow the last."""
    from otr.loop.loop import train
    from otr.models.lora import add_adapters

    torch.manual_seed(0)
    model = empty_model(config.model)
    if config.lora.quantize != "none":
        _quantize(model)
    if config.lora.rank:
        model = add_adapters(model, config.lora)
    base = None
    if config.kl_weight and not config.lora.rank:
        base = as_base(empty_model(config.model), config.model.dtype)
    # Models of other ranks may be empty.
    if not (config.memory.strategy == "fsdp" and dist.get_rank()):
        for each in filter(None, (model, base)):
            _fill(each, "" if config.lora.quantize != "none" else device)
    try:
        train(model, _batches(config, vocabulary), config, lambda *_: None, base=base)
    except ValueError as error:
        assert "the data ended" in str(error)


def _fill(model: Any, device: str) -> None:
    """Give a model random weights; with a device, memory on it first."""
    if device:
        model.to_empty(device=device)
    (getattr(model, "get_base_model", lambda: model))().tie_weights()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=0.02)
    for buffer in model.buffers():
        buffer.fill_(0.5)


def _quantize(model: PreTrainedModel) -> None:
    """Give an empty model memory on the CPU, and random linear layers in 4 bits."""
    import bitsandbytes

    model.to_empty(device="cpu")  # memory that is not used yet
    for name, layer in [*layers_to_quantize(model)]:
        random = torch.randn_like(layer.weight)
        new = bitsandbytes.nn.LinearNF4(*random.shape[::-1], bias=False, device="meta")
        new.weight = bitsandbytes.nn.Params4bit(random, quant_type="nf4", module=new).to("cpu")
        model.set_submodule(name, new)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # for peft
    check_quantized(model)


def _batches(config: TrainConfig, vocabulary: int) -> Iterator[dict[str, torch.Tensor]]:
    shape = config.micro_batch_size, config.data.sequence_length
    for _ in range(2 * config.accumulation):
        yield {
            "input_ids": torch.randint(vocabulary, shape, dtype=torch.int32),
            "loss_mask": torch.ones(shape, dtype=torch.bool),
            "segment_ids": torch.ones(shape, dtype=torch.int32),
        }


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(argv: list[str]) -> None:
    """Measure the cases named in `argv`, or all."""
    if argv[:1] == ["--one"]:
        print(_take_steps(Case(**json.loads(argv[1]))))
        return
    print(f"{'case':<24}{'planned':>12}{'measured':>12}{'error':>9}")
    for case in CASES:
        if argv and case.name not in argv:
            continue
        ours, real = planned(case), measured(case)
        figures = f"{ours / MIB:>8.0f} MiB{real / MIB:>8.0f} MiB{100 * (ours / real - 1):>+8.1f}%"
        print(f"{case.name:<24}{figures}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
