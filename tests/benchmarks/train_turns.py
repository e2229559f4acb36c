"""Contenders of the training benchmark, each in a process of its own, that step in turns.

The figures of a step are {"seconds", "tokens" (real ones, over all ranks), "fed" (token ids that
this process's model was given), "loss" (nll; None if unknown), "peak" (bytes since the start)}.

Only the process whose turn it is computes. The time of a step is that of its turn, so it includes
all that a trainer does between two steps: taking rows, forward, backward, clipping, the optimizer,
its own bookkeeping.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from tests.benchmarks.train_data import Case

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
RANKS = ("otr-1-rank", "otr-2-ranks", "otr-2-alone")
CONTENDERS = ("otr", "sft", "trl-nll", "trl-nll-row", *RANKS)
Figures = dict[str, Any]


class Turns:
    """Turns as a contender takes them: `begin` before its first step, `end` after each step.

    Without streams it never waits, and reports nothing.
    """

    def __init__(self, case: Case, orders: TextIO | None = None, answers: TextIO | None = None):
        self.case, self.orders, self.answers = case, orders, answers
        self.tokens: list[int] = []
        self.fed = self.taken = 0
        self.loss: float | None = None
        self.base = 0
        self.start = 0.0

    def count(self, model: Any, rows: dict[str, Any]) -> None:
        """Count the tokens that the model is given, and the real tokens per step of `rows`."""

        def seen(module: Any, args: tuple[Any, ...]) -> None:
            self.fed += args[0].numel()

        real = (rows["segment_ids"] > 0).sum(axis=1)
        self.tokens = real.reshape(self.case.steps, -1).sum(axis=1).tolist()
        model.get_input_embeddings().register_forward_pre_hook(seen)

    def begin(self) -> None:
        """Wait for the turn."""
        if self.orders is not None and not self.orders.readline():
            raise SystemExit  # the benchmark has ended
        self.start = time.perf_counter()

    def end(self) -> bool:
        """Report the step and wait for the next turn; return True after the last step."""
        from tests.benchmarks.loss import peak_so_far

        if self.case.device == "cuda":
            import torch

            torch.cuda.synchronize()
        if self.answers is not None:
            figures = {
                "seconds": time.perf_counter() - self.start,
                "tokens": self.tokens[self.taken],
                "fed": self.fed,
                "loss": self.loss,
                "peak": peak_so_far(self.case.device) - self.base,
            }
            print(json.dumps(figures), file=self.answers, flush=True)
        self.taken, self.fed = self.taken + 1, 0
        if self.taken == self.case.steps:
            return True
        self.begin()
        return False


class Worker:
    """Process of a contender, as the benchmark sees it."""

    def __init__(self, name: str, case: Case, threads: int, *, warm: bool = False):
        job = {"name": name, "case": dataclasses.asdict(case), "warm": warm}
        variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        if warm:  # freed tensors then leave the resident size; see tests.benchmarks.loss
            variables["MALLOC_MMAP_THRESHOLD_"] = str(MIB)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.train_turns", json.dumps(job)],
            cwd=ROOT,
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.name = name

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.process.kill()
        self.process.communicate()

    def step(self) -> Figures:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # reported below, as a missing answer
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended before its last step; its error is above")
        return json.loads(answer)


def in_turns(names: Iterable[str], case: Case, threads: int) -> dict[str, list[Figures]]:
    """Run all contenders at once, one step each, round after round."""
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, case, threads)) for name in figures]
        for _ in range(case.steps):
            for worker in workers:
                figures[worker.name].append(worker.step())
    check_equal_work(figures, case)
    return figures


def alone(names: Iterable[str], case: Case, threads: int) -> dict[str, list[Figures]]:
    """Run one contender after the other, each after a small run that loads its libraries."""
    figures = {}
    for name in names:
        with Worker(name, case, threads, warm=True) as worker:
            figures[name] = [worker.step() for _ in range(case.steps)]
    check_equal_work(figures, case)
    return figures


def check_equal_work(figures: dict[str, Sequence[Figures]], case: Case) -> None:
    """Check that all start with the same loss, and that each was given every real token.

    Raises:
        RuntimeError: a contender differs.
    """
    known = {
        name: [f["loss"] for f in some if f["loss"] is not None] for name, some in figures.items()
    }
    losses = {name: some[0] for name, some in known.items() if some}
    low, high = min(losses.values()), max(losses.values())
    allowed = {"float32": 1e-4, "bfloat16": 1e-2}[case.dtype]
    if not high - low <= allowed * abs(high):
        raise RuntimeError(f"unequal work: the first step's nll is {losses}")
    for name, some in figures.items():
        if not name.startswith("otr-") and any(f["fed"] < f["tokens"] for f in some):
            raise RuntimeError(f"unequal work: {name} leaves tokens out")


def run(name: str, turns: Turns) -> None:
    """Run a contender in this process."""
    from tests.benchmarks import train_ours, train_peers
    from tests.benchmarks.train_data import OTR, SFT

    if name.startswith("trl"):
        micro_batch_size = 1 if name.endswith("row") else turns.case.micro_batch_size
        train_peers.train(turns, micro_batch_size)
    elif name.startswith("otr-"):
        _, ranks, kind = name.split("-")
        train_ours.train_ranks(turns, int(ranks), connected=kind != "alone")
    else:
        objective = SFT if name == "sft" else OTR
        train_ours.train(turns, objective, compiled=name == "compiled")


def main() -> None:
    job = json.loads(sys.argv[1])
    case = Case(**job["case"])
    # Libraries may print: their stdout goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if job["warm"]:
        small = Case("tiny", 64, 2, 1, 2, case.device, case.dtype)
        run(job["name"], Turns(small))
    turns = Turns(case, sys.stdin, answers)
    turns.base = _fresh_peak(case.device)
    run(job["name"], turns)


def _fresh_peak(device: str) -> int:
    from tests.benchmarks.loss import peak_so_far

    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # not Linux: the peak so far counts
            Path("/proc/self/clear_refs").write_text("5")
    return peak_so_far(device)


if __name__ == "__main__":
    main()
