"""Checkpoints: a Hugging Face directory (contract 2) plus what training needs to go on.

A checkpoint directory holds the model's safetensors, config, tokenizer and chat template, and
`trainer_state.pt` {"step", "optimizer"}. `save_checkpoint` makes it appear whole or not at all.

Under Ray Train that is a scratch directory of the worker, which Ray copies file by file into the
run's storage: a `step-N` there may be cut off. Ray records a checkpoint only once its copy is
complete, and a run goes on from the last recorded one; it writes a cut-off directory anew.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE_FILE = "trainer_state.pt"


def checkpoint_name(step: int) -> str:
    """Of the directory that holds a step's checkpoint."""
    return f"step-{step:06d}"


def save_checkpoint(
    directory: str | Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    state: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
) -> Path:
    """Write a checkpoint; `run` becomes its run.json. Returns the directory.

    Raises:
        FileExistsError: the directory is already there.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} is already there: checkpoints are never overwritten")
    scratch = directory.with_name(f".{directory.name}.{os.getpid()}")
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        if state is not None:
            torch.save(state, scratch / STATE_FILE)
        if run is not None:
            (scratch / "run.json").write_text(json.dumps(run, indent=2) + "\n")
        scratch.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory


def load_checkpoint(directory: str | Path) -> dict[str, Any]:
    """The trainer state in a checkpoint.

    Raises:
        ValueError: the directory holds none.
    """
    path = Path(directory) / STATE_FILE
    if not path.is_file():
        raise ValueError(f"no {STATE_FILE} in {directory}: training can't go on from it")
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoints go, what is saved with them, and which one it continues."""

    directory: Path
    tokenizer: "PreTrainedTokenizerBase"
    run: dict[str, Any] | None = None
    """Written to each checkpoint's run.json."""
    resume_from: Path | None = None
    """The model already has its weights."""

    def save(self, step: int, model: "PreTrainedModel", state: dict[str, Any]) -> Path:
        """Write the checkpoint of a step."""
        path = self.directory / checkpoint_name(step)
        return save_checkpoint(path, model, self.tokenizer, state=state, run=self.run)
