"""Time and memory of the loss and its peers: ``python -m tests.benchmarks.loss --json FILE``.

Cases are TxDxV:dtype (T positions, D width, V vocabulary). Each case prints a table; FILE gets
{"machine": {...}, "cases": [{T, D, V, dtype, device, memory_T, seconds, spread, roofline,
extra_mib, gradient_mib, best peer, ratios}]} and is rewritten after every case.

A time is the median of forward + backward over rounds in which all variants take turns. The
roofline is the three matrix products alone, in the same rounds. Memory is what one run adds to the
peak, at `memory_T` positions: on a CPU of resident memory, in a fresh process per variant; on a GPU
of allocated memory. It includes the gradients of hidden and weight, whose sizes are `gradient_mib`.
"""

import argparse
import contextlib
import dataclasses
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from otr.files import write_json
from tests.benchmarks import loss_bars
from tests.benchmarks.loss_inputs import Case, Inputs, check_equal_work, make_inputs
from tests.benchmarks.loss_peers import VARIANTS, Loss, load

ROOT = Path(__file__).resolve().parents[2]
CPU_CASES = (
    "1024x512x151936:float32",
    "1024x2048x151936:float32",
    "1024x512x32000:float32",
    "1024x512x151936:bfloat16",
)
CUDA_CASES = (
    *(f"{T}x{D}x151936:bfloat16" for T in (4096, 16384) for D in (2048, 4096)),
    "16384x4096x128256:bfloat16",
)


def main() -> None:
    options = parse_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = options.cases or (CUDA_CASES if options.device == "cuda" else CPU_CASES)
    cases = [Case.parse(text, options.device) for text in texts]
    if options.peak:
        [(_, loss)] = load([options.peak], options.device).items()
        print(peak_bytes(loss, cases[0]))
        return

    losses = load(options.variants, options.device)
    for dtype in dict.fromkeys(case.dtype for case in cases):
        check_equal_work(losses, dtype, options.device)
    report: dict = {"machine": describe_machine(options.device), "cases": []}
    for case in cases:
        result = measure(case, losses, options.repeat, options.memory_rows)
        report["cases"].append(result)
        print(loss_bars.table(result), flush=True)
        if options.json:
            write_json(options.json, report)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.loss")
    parser.add_argument(
        "--cases", nargs="+", action="extend", help="such as 1024x512x32000:float32"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeat", type=int, default=7, help="rounds, after one that warms up")
    parser.add_argument("--memory-rows", type=int, default=4096, help="T of the memory runs")
    parser.add_argument("--threads", type=int, help="torch's threads on the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)  # the fresh process
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return options


def measure(case: Case, losses: dict[str, Loss], repeat: int, memory_rows: int) -> dict:
    seconds = time_variants(losses, case, repeat)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    roofline = medians.pop("roofline")
    memory_case = dataclasses.replace(case, T=memory_rows)
    item_mib = getattr(torch, case.dtype).itemsize / loss_bars.MIB
    result = dataclasses.asdict(case) | {
        "memory_T": memory_rows,
        "seconds": medians,
        "spread": {name: [min(seconds[name]), max(seconds[name])] for name in medians},
        "roofline": roofline,
        "extra_mib": extra_mib(losses, memory_case),
        "gradient_mib": {
            "weight": case.V * case.D * item_mib,
            "hidden": memory_rows * case.D * item_mib,
        },
        "best peer": loss_bars.best_peer(medians),
    }
    return result | {"ratios": loss_bars.ratios(result)}


def time_variants(losses: dict[str, Loss], case: Case, repeat: int) -> dict[str, list[float]]:
    """Return the seconds of every variant and the roofline in `repeat` rounds after a warm-up.

    Each round starts with another variant, so that none always follows the same one.
    """
    inputs = make_inputs(case)
    runs = {name: partial(forward_backward, loss, inputs) for name, loss in losses.items()}
    runs["roofline"] = partial(three_products, inputs)
    for name, run in list(runs.items()):
        try:
            time_once(run, inputs)
        except torch.OutOfMemoryError as error:
            print(f"{name} is left out of {case}: {error}")
            del runs[name]

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(repeat):
        for name in order:
            seconds[name].append(time_once(runs[name], inputs))
        order = [*order[1:], order[0]]
    return seconds


def time_once(run: Callable[[], None], inputs: Inputs) -> float:
    synchronize = torch.cuda.synchronize if inputs.hidden_TD.is_cuda else lambda: None
    try:
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        return time.perf_counter() - start
    finally:
        inputs.hidden_TD.grad = inputs.weight_VD.grad = None


def forward_backward(loss: Loss, inputs: Inputs) -> None:
    loss(*inputs).backward()


@torch.no_grad()
def three_products(inputs: Inputs) -> None:
    """Compute the logits and two gradients from them, which no exact loss can avoid."""
    logits_TV = inputs.hidden_TD @ inputs.weight_VD.T
    _ = logits_TV @ inputs.weight_VD
    _ = logits_TV.T @ inputs.hidden_TD


def extra_mib(losses: dict[str, Loss], case: Case) -> dict[str, float]:
    """Return the peak memory that one run of each variant adds, including its gradients."""
    found = {}
    for name, loss in losses.items():
        try:
            on_cpu = case.device == "cpu"
            extra = peak_in_fresh_process(name, case) if on_cpu else peak_bytes(loss, case)
            found[name] = extra / loss_bars.MIB
        except (torch.OutOfMemoryError, subprocess.CalledProcessError) as error:
            print(f"memory of {name} is left out of {case}: {error}")
    return found


def peak_in_fresh_process(name: str, case: Case) -> int:
    """Return `peak_bytes` measured in a fresh process, with nothing of other variants in its heap.

    When a large block is freed, glibc raises its threshold for mapping blocks and keeps smaller
    ones from then on. With a fixed threshold, freed tensors leave the resident size, so the peak is
    that of live tensors.
    """
    command = [sys.executable, "-m", "tests.benchmarks.loss", "--peak", name, "--cases", str(case)]
    command += ["--device", case.device, "--threads", str(torch.get_num_threads())]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(loss_bars.MIB)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout.splitlines()[-1])


def peak_bytes(loss: Loss, case: Case) -> int:
    """Return the bytes by which one run raises the peak above the inputs' memory.

    A tiny run comes first, since what a library loads or compiles at first use is not the loss's.
    """
    tiny = dataclasses.replace(case, T=64, D=64, V=8192)  # enough for every thread to start
    forward_backward(loss, make_inputs(tiny))
    inputs = make_inputs(case)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # no such file outside Linux; the peak so far stays
            Path("/proc/self/clear_refs").write_text("5")
    before = peak_so_far(case.device)
    forward_backward(loss, inputs)
    return peak_so_far(case.device) - before


def peak_so_far(device: str) -> int:
    """Return the peak in bytes since the last reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_machine(device: str) -> dict:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


if __name__ == "__main__":
    main()
