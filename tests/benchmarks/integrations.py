"""A training step in TRL's trainer: ``python -m tests.benchmarks.integrations --json FILE``.

A step is the trainer's `compute_loss` and the backward pass, without the optimizer, for a Qwen3 of
two layers. Ours are `otr.integrations.use_objective` on SFTTrainer; the peers are SFTTrainer's
losses, the model's own loss on full logits, and on a GPU Liger's fused cross-entropy. All share one
set of weights, and are first compared on a small batch.

A time is the median over rounds in which all variants take turns. Memory is what a step adds to the
peak of a process of its own, less the gradients of the parameters, which every variant has to hold.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from otr.files import write_json
from otr.integrations import use_objective
from tests.benchmarks.loss import describe_machine, peak_so_far
from tests.benchmarks.loss_bars import MIB

ROOT = Path(__file__).resolve().parents[2]
ROW = 1024  # tokens per row
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {}),
    "dft": ("dft", {}),
    "otr-k16": ("otr", {"num_samples": 16, "mismatch_reward": -0.1, "temperature": 1.3}),
}
PEERS = {"trl-nll": "sft", "trl-dft": "dft", "full-logits": "sft", "liger": "sft"}
VARIANTS = (*OURS, *PEERS)
BARS = {
    "time dft / trl-dft": 0.6,
    "time otr-k16 / trl-dft": 0.6,
    "time sft / trl-nll": None,
    "time sft / full-logits": None,
    "time sft / liger": None,
    "memory dft / trl-dft": 0.15,
    "memory otr-k16 / trl-dft": 0.15,
    "memory sft / trl-nll": None,
    "memory sft / full-logits": None,
    "memory sft / liger": None,
}
Batch = dict[str, torch.Tensor]
Step = Callable[[Batch], torch.Tensor]


def main() -> None:
    options = parse_options()
    if options.peak:
        print(peak_bytes(options.peak, options))
        return
    names = list(options.variants)
    if "liger" in names and options.device != "cuda":
        print("liger is left out: its kernels are Triton's, which need a GPU", flush=True)
        names.remove("liger")
    extra = {name: peak_in_fresh_process(name, options) / MIB for name in names}
    model = make_model(options)
    steps = {name: make_step(name, model, options) for name in names}
    check_equal_work(steps, model, options)
    seconds = time_in_turns(steps, model, options)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "machine": describe_machine(options.device),
        "options": {k: v for k, v in vars(options).items() if k not in ("json", "peak")},
        "seconds": medians,
        "spread": {name: [min(values), max(values)] for name, values in seconds.items()},
        "tokens_per_second": {name: options.tokens / s for name, s in medians.items()},
        "extra_mib": extra,
    }
    report["ratios"] = ratios(medians, extra)
    print(table(report))
    if options.json:
        write_json(options.json, report)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.integrations")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, help="per timed step; default 1024, on a GPU 4096")
    parser.add_argument("--memory-tokens", type=int, default=4096, help="of the memory runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeat", type=int, default=5, help="rounds, after one that warms up")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)  # the fresh process
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.tokens = options.tokens or (4096 if options.device == "cuda" else 1024)
    return options


def make_model(options: argparse.Namespace) -> torch.nn.Module:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=2 * options.width,
        num_hidden_layers=2,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 128,
        head_dim=64,
        tie_word_embeddings=True,
        dtype="float32" if options.device == "cpu" else "bfloat16",
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config).to(options.device).to(config.dtype)


def make_batch(options: argparse.Namespace, tokens: int) -> Batch:
    """Return rows of at most ROW tokens, all of them trained."""
    generator = torch.Generator().manual_seed(1)
    shape = (max(1, tokens // ROW), min(tokens, ROW))
    ids = torch.randint(options.vocabulary, shape, generator=generator).to(options.device)
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def make_step(name: str, model: torch.nn.Module, options: argparse.Namespace) -> Step:
    """Return what computes a variant's loss, on a model that shares its weights with the others."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    import otr
    from tests.benchmarks.train_data import BASE

    shared = {id(x): x for x in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared).train()
    if name == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3(
            rope=False,
            rms_norm=False,
            swiglu=False,
            fused_linear_cross_entropy=True,
            model=model,
        )
    if name in ("full-logits", "liger"):
        return lambda batch: model(**batch, use_cache=False).loss
    directory = tempfile.mkdtemp()
    trainer = SFTTrainer(
        model,
        SFTConfig(
            directory,
            loss_type="dft" if name == "trl-dft" else "nll",
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=False,
            use_cpu=options.device == "cpu",
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}]),
        processing_class=otr.load_tokenizer(otr.ModelConfig(BASE)),
    )
    if name in OURS:
        objective, settings = OURS[name]
        use_objective(trainer, objective, **settings)
    return lambda batch: trainer.compute_loss(trainer.model, dict(batch))


def run(step: Step, model: torch.nn.Module, batch: Batch) -> None:
    step(batch).backward()
    model.zero_grad(set_to_none=True)


def check_equal_work(
    steps: dict[str, Step], model: torch.nn.Module, options: argparse.Namespace
) -> None:
    """Compare the gradients of peers with those of ours.

    Raises:
        RuntimeError: a peer computes something else.
    """
    batch, found = make_batch(options, 64), {}
    for name, step in steps.items():
        step(batch).backward()
        found[name] = torch.cat([p.grad.flatten().float() for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    allowed = 1e-3 if options.device == "cpu" else 5e-2
    for name, same in PEERS.items():
        if {name, same} <= found.keys():
            gap = float((found[name] - found[same]).norm() / found[same].norm())
            if not gap <= allowed:
                raise RuntimeError(f"{name} differs from our {same} by {gap:.1e}")


def time_in_turns(
    steps: dict[str, Step], model: torch.nn.Module, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the seconds of each variant; each round starts with another one."""
    batch, order = make_batch(options, options.tokens), list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    synchronize = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    for number in range(options.repeat + 1):
        for name in order:
            synchronize()
            start = time.perf_counter()
            run(steps[name], model, batch)
            synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
        order = [*order[1:], order[0]]
    return seconds


def peak_in_fresh_process(name: str, options: argparse.Namespace) -> int:
    """Return `peak_bytes` of a new process, which gives freed tensors back to the system at once.

    See `tests.benchmarks.loss.peak_in_fresh_process`.
    """
    command = [sys.executable, "-m", "tests.benchmarks.integrations", "--peak", name]
    for option in ("vocabulary", "width", "memory_tokens", "device"):
        command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = int(done.stdout.splitlines()[-1])
    print(f"{name}: {found / MIB:.0f} MiB beside model and gradients", flush=True)
    return found


def peak_bytes(name: str, options: argparse.Namespace) -> int:
    """Return the bytes that a step adds to the peak, less the gradients of the parameters.

    A small step comes first, since what a library loads at first use is not the step's.
    """
    model = make_model(options)
    step, batch = make_step(name, model, options), make_batch(options, options.memory_tokens)
    run(step, model, make_batch(options, 64))
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_so_far(options.device)
    step(batch).backward()
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in model.parameters())
    return peak_so_far(options.device) - before - gradients


def ratios(seconds: dict[str, float], extra_mib: dict[str, float]) -> dict[str, float]:
    """Return the ratios of `BARS` whose sides were both measured."""
    found = {}
    for ratio in BARS:
        what, over, _, under = ratio.split()
        values = seconds if what == "time" else extra_mib
        if over in values and under in values:
            found[ratio] = values[over] / values[under]
    return found


def table(report: dict[str, Any]) -> str:
    """Format the report for the terminal."""
    options = report["options"]
    lines = [
        f"D {options['width']}, V {options['vocabulary']}, two layers, {options['device']}; times "
        f"at {options['tokens']} tokens, memory at {options['memory_tokens']}",
        f"{'variant':<14}{'median s':>10}{'min':>9}{'max':>9}{'tokens/s':>10}{'extra MiB':>11}",
    ]
    for name, seconds in report["seconds"].items():
        low, high = report["spread"][name]
        lines.append(
            f"{name:<14}{seconds:>10.2f}{low:>9.2f}{high:>9.2f}"
            f"{report['tokens_per_second'][name]:>10.0f}{report['extra_mib'][name]:>11.0f}"
        )
    for ratio, value in report["ratios"].items():
        bar = BARS[ratio]
        outcome = "" if bar is None else f"  <= {bar:.2f} {'met' if value <= bar else 'NOT met'}"
        lines.append(f"{ratio:<26}{value:>8.3f}{outcome}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
