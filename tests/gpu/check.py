"""Is otr right and fast on this GPU? ``python -m tests.gpu.check``, or `make gpu-check`.

Four parts, in ten minutes at most:

tests    the tests in tests/gpu
loss     time of the loss against that of SFT, of the three products alone and of installed peers
step     steps of models as large as Qwen3-0.6B and 1.7B: MFU, OTR against SFT, memory against the
         planner, and how often the host waits for the GPU
sweep    the whole product on small models: train, swap the weights, prove what is served, score

torch, triton, transformers, peft and pytest suffice; `sweep` is skipped where Ray, vLLM or MLflow
is missing. Prints a table of all measures with their bars. The exit code is 1 if any part failed or
any bar was missed. `--json FILE` writes the figures. `--device cpu` only tries the parts out, at
sizes too small to mean anything.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from otr.files import write_json
from tests.benchmarks import loss_bars, train_bars
from tests.benchmarks.loss import describe_machine
from tests.benchmarks.train_data import Case
from tests.benchmarks.train_turns import in_turns

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600.0
WARM_UP, ROUNDS = 3, 5
STEPS = {"cuda": ("medium:4096x8x4", "large:4096x4x2"), "cpu": ("tiny:64x4x2",)}
LOSSES = {
    "cuda": ("8192x2048x151936:bfloat16", "16384x4096x128256:bfloat16"),
    "cpu": ("64x64x1000:float32",),
}
VARIANTS = ("sft", "dft", "idft", "otr-k256", "otr-expected", "liger", "cce", "quack", "torch-lce")
PRODUCT = ("ray", "vllm", "mlflow")


@dataclass(frozen=True)
class Measure:
    """A line of the table."""

    part: str
    name: str
    value: Any
    bar: str = ""
    met: bool | None = None
    """None: there is no bar."""

    @classmethod
    def of(cls, part: str, name: str, value: float | None, sign: str, bar: float) -> "Measure":
        """Compare a figure with its bar; None can't be compared."""
        met = None
        if value is not None:
            met = value >= bar if sign == ">=" else value <= bar
        return cls(part, name, value, f"{sign} {bar:g}", met)


class Failed(Exception):
    """A part that could not be measured, with the end of what it printed."""


class Machine:
    """Runs programs on the device, until the time is used up."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.end = device, time.monotonic() + seconds

    def run(self, *command: str) -> str:
        """Return the output of a program of this Python.

        Raises:
            Failed: it ended with an error, or not in time.
        """
        left = max(0.0, self.end - time.monotonic())
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=max(1.0, left),
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{' '.join(command)} was not done in the {left:.0f} s left") from None
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-15:])
            raise Failed(f"{' '.join(command)} ended with exit code {done.returncode}:\n{last}")
        return done.stdout


def tests(machine: Machine) -> Iterator[Measure]:
    """Run the tests of tests/gpu."""
    said = machine.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu")
    yield Measure("tests", "tests/gpu", said.splitlines()[-1], "all pass", True)


def loss(machine: Machine) -> Iterator[Measure]:
    """Measure the loss."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "loss.json"
        sizes = ["--cases", *LOSSES[machine.device], "--memory-rows", "4096"]
        named = ["--variants", *VARIANTS, "--device", machine.device, "--json", str(file)]
        machine.run("-m", "tests.benchmarks.loss", *sizes, *named, "--repeat", str(ROUNDS))
        cases = json.loads(file.read_text())["cases"]
    for case in cases:
        part = "loss " + "x".join(str(case[name]) for name in "TDV")
        for name, value in case["ratios"].items():
            bar = loss_bars.bar_of(name, case)
            if bar is None:
                yield Measure(part, name, value)
            else:
                yield Measure.of(part, name, value, *bar)


def step(machine: Machine) -> Iterator[Measure]:
    """Measure training steps."""
    for text in STEPS[machine.device]:
        part, (name, _, sizes) = f"step {text}", text.partition(":")
        length, batch, micro = map(int, sizes.split("x"))
        dtype = "bfloat16" if machine.device == "cuda" else "float32"
        case = Case(name, length, batch, micro, WARM_UP + ROUNDS, machine.device, dtype)
        names = ["otr", "sft", *(["compiled"] if machine.device == "cuda" else [])]
        found = train_bars.summary(in_turns(names, case, 1), WARM_UP)
        speeds = found["tokens_per_second"]
        yield Measure(part, "tokens/s, otr", speeds["otr"])
        ratio = speeds["otr"] / speeds["sft"]
        yield Measure.of(part, "tokens/s, otr / sft", ratio, ">=", 0.98)
        if "compiled" in speeds:
            compiled = speeds["compiled"] / speeds["otr"]
            yield Measure(part, "tokens/s, with / without memory.compile", compiled)
        gpu = torch.cuda.get_device_name() if machine.device == "cuda" else ""
        used = train_bars.mfu(speeds["otr"], asdict(case), gpu)
        yield Measure.of(part, "MFU", used, ">=", 0.45)
        one = json.loads(machine.run("-m", "tests.gpu.step", text, machine.device).splitlines()[-1])
        planned, measured = one["planned_bytes"], one["measured_bytes"]
        off = None if measured is None else abs(planned / measured - 1)
        yield Measure.of(part, "memory, planned / measured - 1", off, "<=", 0.15)
        waits = sum(one["waits"].values())
        places = f" ({', '.join(one['waits'])})" if waits > 1 else ""
        yield Measure.of(part, f"waits of the host per step{places}", waits, "<=", 1)


def sweep(machine: Machine) -> Iterator[Measure]:
    """Run the product: two objectives and the base model, trained, served, proved and scored."""
    missing = [name for name in PRODUCT if importlib.util.find_spec(name) is None]
    if missing:
        yield Measure("sweep", "skipped", f"not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        options = ["--preset", "debug", "--output", folder, "--name", "gpu-check"]
        steps = ["--train.max-steps", "20", "--train.model.dtype", "bfloat16"]
        machine.run("-m", "pipelines.full_sweep", *options, *steps)
        entries = json.loads((Path(folder) / "gpu-check" / "leaderboard.json").read_text())
    arms = len(entries["entries"])
    yield Measure("sweep", "models trained, served, proved and scored", arms, ">= 3", arms >= 3)


PARTS: tuple[Callable[[Machine], Iterator[Measure]], ...] = (tests, loss, step, sweep)


def check(machine: Machine, names: Sequence[str]) -> Iterator[Measure]:
    """Yield the measures of the named parts; a part that fails is a measure that is not met."""
    for part in PARTS:
        if part.__name__ in names:
            try:
                yield from part(machine)
            except (Failed, RuntimeError, OSError, ValueError, KeyError) as error:
                yield Measure(part.__name__, "failed", str(error), "ends well", False)


def table(measures: Sequence[Measure]) -> str:
    """Return a table of the measures."""
    words = {None: "-", True: "yes", False: "NO"}
    lines = [("part", "measure", "value", "bar", "met")]
    for one in measures:
        shown = "-" if one.value is None else one.value
        value = f"{shown:.4g}" if isinstance(shown, float) else str(shown)
        lines.append((one.part, one.name, value.splitlines()[0], one.bar, words[one.met]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check")
    known = [part.__name__ for part in PARTS]
    parser.add_argument("--parts", nargs="+", choices=known, default=known)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for all parts")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU here (torch.cuda.is_available() is False): nothing was checked")
        return 1
    measures: list[Measure] = []
    for one in check(Machine(options.device, options.seconds), options.parts):
        measures.append(one)
        if one.name == "failed":
            print(f"{one.part}: {one.value}", file=sys.stderr, flush=True)
    print(table(measures))
    if options.json:
        report = {"machine": describe_machine(options.device)}
        write_json(options.json, report | {"measures": [asdict(one) for one in measures]})
    return int(any(one.met is False for one in measures))


if __name__ == "__main__":
    raise SystemExit(main())
