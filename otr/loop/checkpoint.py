"""Checkpoints: a Hugging Face directory (contract 2) plus what training needs to go on.

A checkpoint directory holds the model's safetensors (or a LoRA adapter's), config, tokenizer, chat
template and run.json, and in `trainer/` the optimiser's shards as torch's DCP writes them,
`state.json` {"step", "world", ...} and for each rank a `files-RANK.json` with size and SHA-256 of
what it wrote. A checkpoint counts where all of these lists are there and true.

A `Snapshot` is taken while training stands still, and written while it goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn

from otr.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINER = "trainer"
STATE = "state.json"
OPTIMIZER = "optimizer"


class DamagedCheckpoint(ValueError):
    """A checkpoint lacks a file, or has another one than was written."""


def checkpoint_name(step: int) -> str:
    """Of the directory that holds a step's checkpoint."""
    return f"step-{step:06d}"


class Staging:
    """Memory of the host that snapshots are copied into, the same for each: new pages cost more."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor, or this rank's part of it, on the CPU; the next of its name overwrites it."""
        source = tensor.detach()
        local = getattr(source, "_local_tensor", source)  # of a DTensor
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (local.shape, local.dtype):
            kept = self._kept[name] = torch.empty_like(local, device="cpu")
        kept.copy_(local)
        if local is source:
            return kept
        from torch.distributed.tensor import DTensor

        its = cast(DTensor, source)
        return DTensor.from_local(
            kept,
            its.device_mesh,
            its.placements,
            run_check=False,
            shape=its.shape,
            stride=its.stride(),
        )


@dataclass
class Snapshot:
    """A copy of a run's state at a step, in the host's memory; good until the next is taken."""

    step: int
    model: "PreTrainedModel"
    """For its config, and its adapters' if it has any; not for its weights."""
    weights: dict[str, Tensor] | None
    """On rank 0: what is saved of the model. None on the others."""
    optimizer: dict[str, Any]
    """This rank's part, by parameter names."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What else a run goes on from, as JSON."""
    probe: tuple[Mapping[str, Tensor], float, float] | None = None
    """A micro-batch, its NLL under the model in training, and how far from it that of the saved
    model may be; None: that is not looked at."""
    stall_seconds: float = 0.0
    """That training stood still for it, and until the one before was written."""

    def write(
        self,
        directory: str | Path,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        run: dict[str, Any] | None = None,
        group: dist.ProcessGroup | None = None,
        shared: bool = True,
    ) -> Path:
        """Write the checkpoint; it appears whole or not at all. Every rank calls this.

        Args:
            directory: the checkpoint's; what is there already is replaced.
            tokenizer: saved with it.
            run: becomes its run.json.
            group: gloo ranks of this run, used for nothing else meanwhile (None: a single one).
            shared: whether the directory is the same one for all ranks; else each writes its part.

        Raises:
            OSError: it could not be written; nothing of it is left.
        """
        directory = Path(directory)
        rank, world = (
            (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        )
        scratch = directory.with_name(f".{directory.name}")
        first = rank == 0 or not shared
        try:
            with _os_errors():
                if first:
                    shutil.rmtree(scratch, ignore_errors=True)
                    (scratch / TRAINER).mkdir(parents=True)
                _meet(group)
                _write_optimizer(scratch / TRAINER / OPTIMIZER, self.optimizer, group)
                if self.weights is not None:
                    _write_model(scratch, self.model, self.weights, tokenizer)
                    state = {"step": self.step, "world": world, **self.progress}
                    write_json(scratch / TRAINER / STATE, state)
                    if run is not None:
                        write_json(scratch / "run.json", run)
                    self._check_export(scratch)
                sums = _sums(scratch, _own_files(scratch, rank))
                write_json(scratch / TRAINER / f"files-{rank}.json", sums)
                _meet(group)
                if first:
                    shutil.rmtree(directory, ignore_errors=True)
                    scratch.rename(directory)
                _meet(group)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return directory

    def _check_export(self, directory: Path) -> None:
        """Load what was written as anybody would, and predict the probe with it."""
        if self.probe is None:
            return
        from otr.loop.policy import reloaded_nll

        batch, nll, tolerance = self.probe
        again = reloaded_nll(directory, self.model, batch)
        if not abs(again - nll) <= tolerance:
            raise OSError(
                f"the model written for step {self.step} has NLL {again:.6g} where the one in "
                f"training has {nll:.6g}: it is not kept"
            )


def save_checkpoint(
    directory: str | Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    run: dict[str, Any] | None = None,
) -> Path:
    """Write a model as a Hugging Face directory; `run` becomes its run.json. Returns the directory.

    Raises:
        FileExistsError: the directory is already there.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} is already there: checkpoints are never overwritten")
    weights = saved_weights(model, model.state_dict())
    return Snapshot(0, model, weights, {}).write(directory, tokenizer, run=run)


def load_checkpoint(directory: str | Path) -> dict[str, Any]:
    """What a run goes on from, but weights and optimiser: {"step", "world", ...}.

    Raises:
        ValueError: the directory holds none.
    """
    path = Path(directory) / TRAINER / STATE
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(
            f"no {TRAINER}/{STATE} in {directory}: training can't go on from it ({error})"
        ) from error


def check_checkpoint(directory: str | Path) -> None:
    """Compare a checkpoint's files with its lists.

    Raises:
        DamagedCheckpoint: one is missing or differs; the message names it.
    """
    directory = Path(directory)
    for rank in range(load_checkpoint(directory)["world"]):
        listed = directory / TRAINER / f"files-{rank}.json"
        try:
            wanted = json.loads(listed.read_text())
            found = _sums(directory, map(directory.joinpath, wanted))
        except (OSError, ValueError) as error:
            raise DamagedCheckpoint(f"{directory} is incomplete: {error}") from error
        for name, sums in wanted.items():
            if found[name] != sums:
                raise DamagedCheckpoint(f"{directory / name} is not as it was written")


def saved_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is saved of a model's state dict: of tied weights one, of adapters them alone."""
    if hasattr(model, "peft_config"):
        from otr.models.lora import adapter_state

        return adapter_state(model, weights)
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False)]
    tied = {name for name, p in named if first.setdefault(id(p), name) != name}
    return {name: tensor for name, tensor in weights.items() if name not in tied}


def _write_model(
    directory: Path,
    model: "PreTrainedModel",
    weights: dict[str, Tensor],
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    if hasattr(model, "peft_config"):
        from otr.models.lora import write_adapter

        write_adapter(directory, model, weights)
    else:
        model.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def _write_optimizer(
    directory: Path, optimizer: dict[str, Any], group: dist.ProcessGroup | None
) -> None:
    if optimizer or group is not None:  # then all ranks take part
        dcp.save(optimizer, checkpoint_id=directory, process_group=group, no_dist=group is None)


def _own_files(directory: Path, rank: int) -> Iterator[Path]:
    """What this rank wrote: its shards; rank 0 all the rest too."""
    for path in sorted(directory.rglob("*")):
        shard_of = path.name.split("_")[2] if path.suffix == ".distcp" else "0"
        if path.is_file() and shard_of == str(rank) and not path.name.startswith("files-"):
            yield path


def _sums(directory: Path, paths: Iterable[Path]) -> dict[str, list[Any]]:
    sums: dict[str, list[Any]] = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sums[str(path.relative_to(directory))] = [path.stat().st_size, digest]
    return sums


@contextmanager
def _os_errors() -> Iterator[None]:
    """What went wrong while writing as an OSError: torch's own error is no Exception at all."""
    try:
        yield
    except dcp.api.CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(str(first)) from first
    except (RuntimeError, SafetensorError) as error:  # of the writers, where a disk is full
        raise OSError(str(error)) from error


def _meet(group: dist.ProcessGroup | None) -> None:
    if group is not None:
        dist.barrier(group)
