"""The kernels compiled ahead of time: ``python -m tests.otr.loss.compiled`` rewrites the baseline.

Triton and the tools in its wheel compile for a GPU without one. Launches are recorded on meta
tensors, so what is compiled is what `loss_and_gradient_` would launch. The baseline,
`compiled.json`, has each kernel's registers and instructions on an H100, and the instructions of
its loops. It belongs to the version of Triton that the CUDA build of torch requires.
"""

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from otr import Objective
from otr.loss.kernels import rows
from otr.loss.objective import names
from otr.loss.rows import Compared

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
            if (
                parameter.is_constexpr
                or value is None
                or (specialized and type(value) is int and value == 1)
            ):
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
        """Return Triton's compiled kernel for one of TARGETS."""
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
    *,
    weighted: bool = False,
    with_base: bool = False,
) -> dict[str, Launch]:
    """Return the launches for a chunk of logits as `otr.loss.fused` allocates it, by kernel."""
    made: dict[str, Launch] = {}
    originals = {name: getattr(rows, name) for name in KERNELS}
    stride = -(-vocabulary // 64) * 64
    logits_CV, base_CV = torch.empty(2, 64, stride, dtype=dtype, device="meta")[:, :, :vocabulary]
    target_C = torch.empty(64, dtype=torch.int64, device="meta")
    factor = torch.empty((), device="meta")
    weight_C = torch.empty(64, device="meta") if weighted else None
    start_C = torch.empty(64, device="meta") if objective.needs_start else None
    compared = Compared(start_C, base_CV, 0.1) if with_base else Compared(start_C)
    try:
        for name, kernel in originals.items():
            setattr(rows, name, _Recorder(kernel, made))
        rows.loss_and_gradient_(
            logits_CV, target_C, target_C, objective, 5, softcap, factor, weight_C, compared
        )
    finally:
        for name, kernel in originals.items():
            setattr(rows, name, kernel)
    return made


# What is compiled for every kind of GPU, and what for an H100 besides.
CASES = {
    "sampled": launches(OBJECTIVES["sampled"]),
    "expected": launches(OBJECTIVES["expected"]),
}
H100_CASES = {
    "sft": launches(OBJECTIVES["sft"]),
    "dft": {"losses": launches(OBJECTIVES["dft"])["losses"]},
    "half": {"losses": launches(OBJECTIVES["half"])["losses"]},
    **{
        name: {"losses": launches(Objective(name))["losses"]}
        for name in names()
        if name not in OBJECTIVES and name != "otr"
    },
    "sft, weights": {"losses": launches(OBJECTIVES["sft"], weighted=True)["losses"]},
    "dft, base": launches(OBJECTIVES["dft"], with_base=True),
    "sampled, base": launches(OBJECTIVES["sampled"], with_base=True),
    "sft, smoothed, z-loss": launches(Objective("sft", label_smoothing=0.1, z_loss=1e-4)),
    "sampled, float32": launches(OBJECTIVES["sampled"], dtype=torch.float32),
    "sampled, vocabulary 50257": launches(OBJECTIVES["sampled"], 50257),
    "expected, softcap": launches(OBJECTIVES["expected"], softcap=30.0),
}


@dataclass(frozen=True)
class Code:
    """What a kernel compiled to on an NVIDIA GPU."""

    registers: int
    spilled: int
    """Bytes of local memory."""
    instructions: int
    loops: list[int]
    """Instructions of each loop, those within it included, in order of their ends."""
    loads: dict[str, int]
    """Instructions that read global memory, by their width."""
    stores: dict[str, int]


def code(compiled: Any) -> Code:
    """Disassemble a kernel that was compiled for an NVIDIA GPU."""
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory, "kernel.cubin")
        binary.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", binary)
        text = _run("cuobjdump", "-sass", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found is not None, usage
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.MULTILINE)
    number = {int(address, 16): i for i, (address, _) in enumerate(lines)}
    loops = []
    for i, (_, line) in enumerate(lines):
        jump = re.search(r"BRA.* (0x[0-9a-f]+)", line)
        if jump and number.get(int(jump[1], 16), i) < i:  # not the endless one after the end
            loops.append(i - number[int(jump[1], 16)] + 1)
    every = " ".join(line for _, line in lines)
    return Code(
        registers=int(found[1]),
        spilled=int(found[2]) + int(found[3]),
        instructions=len(lines),
        loops=loops,
        loads=_widths(re.findall(r"\bLDG\.[\w.]*", every)),
        stores=_widths(re.findall(r"\bSTG\.[\w.]*", every)),
    )


def _widths(instructions: list[str]) -> dict[str, int]:
    widths = [next((w for w in ("128", "64", "16", "8") if w in i), "32") for i in instructions]
    return {width: widths.count(width) for width in sorted(set(widths))}


def _run(tool: str, *arguments: str | Path) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def measured() -> dict[str, Any]:
    """Return the numbers of the baseline for the installed Triton."""
    kernels = {
        f"{case}: {name}": code(launch.compile("sm_90"))
        for case, made in (CASES | H100_CASES).items()
        for name, launch in made.items()
    }
    return {
        "triton": triton.__version__,
        "kernels": {
            name: {
                "registers": found.registers,
                "instructions": found.instructions,
                "loops": found.loops,
            }
            for name, found in kernels.items()
        },
    }


def write(path: Path = BASELINE) -> None:
    """Write the baseline, one kernel per line."""
    made = measured()
    lines = [f"  {json.dumps(name)}: {json.dumps(of)}" for name, of in made["kernels"].items()]
    text = f'{{"triton": {json.dumps(made["triton"])},\n "kernels": {{\n'
    path.write_text(text + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    write()
