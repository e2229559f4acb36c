"""Memory and waits of a training step: ``python -m tests.gpu.step MODEL:SxRxB DEVICE``.

Prints as JSON the planned and the measured peak of a step's memory (on a GPU only), and how often
the host waited for the GPU in a step, by place. MODEL is one of tests.benchmarks.train_data.SHAPES.
"""

import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from otr.config import DataConfig, ModelConfig, OptimConfig, TrainConfig, Workers
from otr.loop.loop import train
from otr.memory.planner import plan
from tests.benchmarks.train_data import OTR, SHAPES, Case, make_model, make_rows

STEPS = 3


def figures(case: Case) -> dict[str, Any]:
    """Take STEPS steps of a case; return the peak of all, and the waits in the last."""
    on_gpu = case.device == "cuda"
    rows = {name: torch.from_numpy(column) for name, column in make_rows(case).items()}
    with tempfile.TemporaryDirectory() as folder:
        config = _config(case, folder)
        planned = plan(config, 2**40).device.total
        before = torch.cuda.memory_allocated() if on_gpu else 0
        model = make_model(case, "auto")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with warnings.catch_warnings(record=True) as caught, suppress(StopTraining):
            warnings.simplefilter("always")
            train(model, _batches(rows, case), config, lambda *_: None)  # type: ignore[arg-type]
    waits = Counter(
        f"{Path(str(one.filename)).name}:{one.lineno}"
        for one in caught
        if "synchronizing" in str(one.message)
    )
    measured = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return {"planned_bytes": planned, "measured_bytes": measured, "waits": waits}


def _config(case: Case, folder: str) -> TrainConfig:
    shape = {"tie_word_embeddings": True, "architectures": ["Qwen3ForCausalLM"]}
    Qwen3Config(**SHAPES[case.model], **shape).save_pretrained(folder)
    return TrainConfig(
        model=ModelConfig(folder, dtype=case.dtype),  # type: ignore[arg-type]
        data=DataConfig(("-",), sequence_length=case.sequence_length),
        objective=OTR,
        optim=OptimConfig(lr=1e-5),
        workers=Workers(gpus=int(case.device == "cuda")),
        max_steps=STEPS + 1,  # the last would write a checkpoint
        global_batch_size=case.global_batch_size,
        micro_batch_size=case.micro_batch_size,
        log_interval=STEPS + 1,
    )


def _batches(rows: dict[str, torch.Tensor], case: Case) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the micro-batches of STEPS steps; in the last step torch warns of each wait.

    Raises:
        StopTraining: after them.
    """
    for step in range(STEPS):
        if case.device == "cuda" and step == STEPS - 1:
            torch.cuda.set_sync_debug_mode("warn")
        first = step * case.global_batch_size
        for start in range(first, first + case.global_batch_size, case.micro_batch_size):
            part = slice(start, start + case.micro_batch_size)
            yield {name: column[part] for name, column in rows.items()}
    if case.device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    raise StopTraining


class StopTraining(Exception):
    """Ends a run before the step that would write a checkpoint."""


def main() -> None:
    name, _, sizes = sys.argv[1].partition(":")
    dtype = "bfloat16" if sys.argv[2] == "cuda" else "float32"
    print(json.dumps(figures(Case(name, *map(int, sizes.split("x")), STEPS, sys.argv[2], dtype))))


if __name__ == "__main__":
    main()
