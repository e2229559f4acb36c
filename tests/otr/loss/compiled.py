"""The kernels compiled ahead of time: ``python -m tests.otr.loss.compiled`` rewrites the baseline.

A launch is recorded on meta tensors, so what is compiled is what `loss_and_gradient_` would launch,
and compiled by Triton and the tools that it comes with; no GPU is needed. The baseline,
`compiled.json`, has for each launch the registers, the instructions, and those of each loop on an
H100. It belongs to one version of Triton, the one that the CUDA build of torch requires.
"""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from otr import Objective
from otr.loss.kernels import rows

BASELINE = Path(__file__).with_suffix(".json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OBJECTIVES = {
    "sft": Objective("sft"),
    "dft": Objective("dft"),
    "sampled": Objective(),
    "half": Objective(num_samples=4, estimator="half"),
    "expected": Objective(estimator="expected"),
}
KERNELS = ("statistics", "losses", "gradient_", "write_")


@dataclass(frozen=True)
class Launch:
    """A kernel and the arguments that it is launched with."""

    kernel: Any
    arguments: dict[str, Any]

    def source(self) -> ASTSource:
        """Return what Triton compiles for these arguments."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            specialized = not parameter.do_not_specialize
            if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
                signature[parameter.name], constants[(index,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
                aligned = not parameter.do_not_specialize_on_alignment
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                aligned = isinstance(value, int) and specialized and value % 16 == 0
            if aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)

    def compile(self, target: str) -> Any:
        """Return Triton's compiled kernel."""
        return triton.compile(self.source(), target=TARGETS[target])


class _Recorder:
    """Stands for a kernel; notes a launch instead of making one."""

    def __init__(self, kernel: Any, launches: dict[str, Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **constants: Any) -> None:
            named = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
            self.launches[self.kernel.__name__] = Launch(self.kernel, named)

        return launch


def launches(
    objective: Objective,
    vocabulary: int = 151936,
    dtype: torch.dtype = torch.bfloat16,
    softcap: float | None = None,
) -> dict[str, Launch]:
    """Return the launches for a chunk of logits as `otr.loss.fused` allocates it, by kernel."""
    made: dict[str, Launch] = {}
    originals = {name: getattr(rows, name) for name in KERNELS}
    stride = -(-vocabulary // 64) * 64
    logits_CV = torch.empty(64, stride, dtype=dtype, device="meta")[:, :vocabulary]
    target_C = torch.empty(64, dtype=torch.int64, device="meta")
    factor = torch.empty((), device="meta")
    try:
        for name, kernel in originals.items():
            setattr(rows, name, _Recorder(kernel, made))
        rows.loss_and_gradient_(logits_CV, target_C, target_C, objective, 5, softcap, factor)
    finally:
        for name, kernel in originals.items():
            setattr(rows, name, kernel)
    return made


@dataclass(frozen=True)
class Machine:
    """What a kernel compiled to on an NVIDIA GPU."""

    registers: int
    spilled: int
    """Bytes of local memory."""
    instructions: int
    loops: list[int]
    """Instructions of each loop, those within it included, in order of the code."""
    loads: dict[str, int]
    """Instructions that read global memory, by their width."""


def machine(compiled: Any) -> Machine:
    """Disassemble a kernel that was compiled for an NVIDIA GPU."""
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", binary)
        code = _run("cuobjdump", "-sass", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE)
    number = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, text) in enumerate(lines):
        jump = re.search(r"BRA.* (0x[0-9a-f]+)", text)
        if jump and number.get(int(jump[1], 16), i) < i:  # not the endless one after the end
            loops.append(i - number[int(jump[1], 16)] + 1)
    loads = re.findall(r"\b(LDG\.[\w.]*)", " ".join(text for _, text in lines))
    widths = [next((w for w in ("128", "64", "U16", "U8") if w in name), "32") for name in loads]
    return Machine(
        registers=int(found[1]),
        spilled=int(found[2]) + int(found[3]),
        instructions=len(lines),
        loops=loops,
        loads={width: widths.count(width) for width in sorted(set(widths))},
    )


def _run(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
