"""Estimated times of the head on an H100: ``python -m tests.benchmarks.loss_estimate``.

No GPU ran any of this. The times follow from the bytes that each part moves and from the
instructions that the kernels compiled to (`tests/otr/loss/compiled.json`): a part takes the longer
of the two. The range has as its ends a GPU that issues an instruction in every cycle, and one that
issues 65 % of that in the passes and 50 % in the kernel of the draws.

Shapes: T scored positions, D width, V vocabulary, K draws per position.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

COMPILED = Path(__file__).parents[1] / "otr" / "loss" / "compiled.json"
# H100 SXM: multiprocessors, clock in Hz, bytes per second that reach a kernel (88 % of the data
# sheet's), and operations per second of large bfloat16 products (80 % of 989e12).
SMS, CLOCK, BANDWIDTH, PRODUCTS = 132, 1.755e9, 0.88 * 3.35e12, 790e12
EXPONENTIALS = 16  # per cycle and multiprocessor
SPAN, BLOCK, CDF, LANES, DRAWS, OTHERS = 2048, 64, 1024, 256, 32, 16  # of otr.loss.kernels.rows
CHUNK_BYTES = 3 * 2**30  # of otr.loss.fused, where memory is free
CASES = ((16384, 4096, 128256), (8192, 2048, 151936))
ENDS = ((1.0, 1.0), (0.65, 0.5))  # instructions per cycle: of the passes, of the draws
# Loops of the kernel `losses` in order of their ends; the bisection is unrolled.
LOOPS = ("cdf", "hits", "steps", "rest of steps", "blocks", "entries", "compare", "gradients")


@dataclass(frozen=True)
class Head:
    """The size of a head, and how many of the positions' draws are misses."""

    T: int
    D: int
    V: int
    misses: int

    @property
    def logits(self) -> int:
        return self.T * self.V

    @property
    def blocks(self) -> int:
        return math.ceil(self.V / SPAN) * (SPAN // BLOCK)


def main() -> None:
    kernels = json.loads(COMPILED.read_text())["kernels"]
    print("| ms | " + " | ".join(f"T {T}, D {D}, V {V}" for T, D, V in CASES) + " |")
    print("|---|" + "---|" * len(CASES))
    heads = [Head(*case, misses=256) for case in CASES]
    print_row("three products", [[1e3 * products(head)] for head in heads])
    print_row("cast of the weight, sums of its gradient", [[1e3 * weight(head)] for head in heads])
    for name, objective, misses in (
        ("row kernels, sft", "sft", 0),
        ("row kernels, otr expected", "expected", 0),
        ("row kernels, otr K 256, all draws miss", "sampled", 256),
        ("row kernels, otr K 256, half of the draws miss", "sampled", 128),
    ):
        heads = [Head(*case, misses=misses) for case in CASES]
        times = [[1e3 * rows(kernels, objective, head, end) for end in ENDS] for head in heads]
        print_row(name, times)
    for name, objective, misses in (
        ("otr expected over sft", "expected", 0),
        ("otr K 256 over sft, all draws miss", "sampled", 256),
        ("otr K 256 over sft, half of the draws miss", "sampled", 128),
    ):
        heads = [Head(*case, misses=misses) for case in CASES]
        print_row(
            name, [[over_sft(kernels, objective, h, end) for end in ENDS] for h in heads], "%"
        )


def print_row(name: str, columns: list[list[float]], unit: str = "") -> None:
    """Print a line of the table; a range where the ends differ."""
    cells = [" to ".join(dict.fromkeys(f"{value:.1f}" for value in ends)) for ends in columns]
    print(f"| {name} | " + " | ".join(f"{cell} {unit}".strip() for cell in cells) + " |")


def products(head: Head) -> float:
    """Return the seconds of the three products."""
    return 3 * 2 * head.logits * head.D / PRODUCTS


def weight(head: Head) -> float:
    """Return the seconds of the float32 weight's cast, and of adding each chunk but the first."""
    rows_per_chunk = CHUNK_BYTES // (2 * head.V)
    chunks = math.ceil(head.T / rows_per_chunk)
    return head.V * head.D * (6 + 8 * (chunks - 1)) / BANDWIDTH


def rows(kernels: dict, objective: str, head: Head, end: tuple[float, float]) -> float:
    """Return the seconds of the row kernels of all chunks."""
    passes, draws = end
    spans = head.logits / SPAN
    [loop] = kernels[f"{objective}: statistics"]["loops"]
    exponentials = SPAN * (1 if objective == "sft" else 2) / EXPONENTIALS
    block_bytes = 4 * head.T * head.blocks if objective == "sampled" else 0
    first = slower(2 * head.logits + 2 * block_bytes, spans * max(loop / passes, exponentials))
    # The gradient's code has a branch for the end of a row, as long as that for all other spans.
    code = kernels[f"{'expected' if objective == 'expected' else 'sft'}: gradient_"]
    second = slower(4 * head.logits, spans * code["instructions"] / 2 / passes)
    if objective != "sampled":
        return first + second
    read = head.T * head.misses * (2 * BLOCK + 32) + 4 * block_bytes
    middle = slower(read, head.T * draw_instructions(kernels, head) / draws)
    written = slower(head.T * head.misses * (8 + 2 * 32), 0)
    return first + middle + second + written


def draw_instructions(kernels: dict, head: Head) -> float:
    """Return the instructions per scheduler and row of `losses` for K = 256 draws."""
    code = kernels["sampled: losses"]
    loop = dict(zip(LOOPS, code["loops"], strict=True))
    once = code["instructions"] - sum(
        loop[name] for name in ("cdf", "hits", "blocks", "entries", "gradients")
    )
    lanes = math.ceil(head.misses / LANES)
    bisection = loop["steps"] * head.blocks.bit_length() / 4
    return (
        once
        + loop["cdf"] * math.ceil(head.blocks / CDF)
        + loop["hits"]
        + lanes * (loop["blocks"] - loop["steps"] - loop["rest of steps"] + bisection)
        + loop["entries"] * math.ceil(head.misses / DRAWS)
        + lanes * (loop["gradients"] - loop["compare"])
        + lanes * loop["compare"] * math.ceil(head.misses / OTHERS)
    )


def slower(moved_bytes: float, cycles: float) -> float:
    """Return the seconds of work that moves bytes and takes cycles of one multiprocessor."""
    return max(moved_bytes / BANDWIDTH, cycles / SMS / CLOCK)


def over_sft(kernels: dict, objective: str, head: Head, end: tuple[float, float]) -> float:
    """Return by how many percent the head takes longer than with sft."""
    common = products(head) + weight(head)
    sft = common + rows(kernels, "sft", head, end)
    return 100 * (common + rows(kernels, objective, head, end) - sft) / sft


if __name__ == "__main__":
    main()
