"""Checkpoints: a Hugging Face checkpoint directory plus what training needs to resume.

A checkpoint directory holds the model's (or a LoRA adapter's) safetensors, config, tokenizer, chat
template and run.json. Its folder `trainer/` holds the optimizer's shards as torch's distributed
checkpoint writes them (unless the weights are rounded: see `Snapshot.dtype`), `state.json` {"step",
"world", ...}, and one `files-RANK.json` per rank with the size and SHA-256 of each file that the
rank wrote. A checkpoint is complete if all these lists exist and all files match them.

A `Snapshot` is taken while training pauses, and written while training continues.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn

from otr._compat import is_lost_peer, shard_rank
from otr.files import write_json
from otr.loop.export import (
    Ranks,
    Written,
    can_reload,
    file_difference,
    first_difference,
    rounded,
    write_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from otr.loop.batch import PackedBatch

TRAINER = "trainer"
STATE = "state.json"
OPTIMIZER = "optimizer"
UNVERIFIED = "unverified.json"
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of a checkpoint that lacks a file. Any other OSError is the storage's own."""

ALLOWED = {"float32": 2**-9, "bfloat16": 2.0}
"""Largest accepted difference of a saved model's NLL from that of the model in training, as a share
of what bfloat16 rounding in other places changes; by the precision that both compute in. Float32
rounds 2^16 times as finely; a factor of 2^7 is left for sums in another order.
"""
FLOOR = 2**-16
"""Difference in nats that is always accepted: how float32 rounds a logit of 128 to 256."""


class DamagedCheckpoint(ValueError):
    """A checkpoint in which a file is missing or differs from what was written."""


class UnverifiedCheckpoint(Exception):
    """A checkpoint that was written, but whose model is not found to be the one in training.

    Args:
        directory: path or URI that it was written to.
        reason: what differs.
    """

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)  # what pickle gives back
        self.directory, self.reason = directory, reason

    def __str__(self) -> str:
        """Return one line that names the directory and what differs."""
        return f"the last checkpoint is kept as {self.directory}, but not trusted: {self.reason}"


def checkpoint_name(step: int) -> str:
    """Return the name of the directory that holds a step's checkpoint."""
    return f"step-{step:06d}"


class Staging:
    """Host memory that every snapshot is copied into; reuse avoids the cost of new pages.

    A GPU writes to it directly, without the host's help: its pages are pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """Return a copy on the CPU of a tensor, or of this rank's shard of a DTensor.

        The copy is complete after `wait`. The next call with the same name overwrites it.
        """
        source = tensor.detach()
        if not hasattr(source, "to_local"):
            return self._copied(name, source)
        from torch.distributed.tensor import DTensor  # slow to import

        sharded = cast(DTensor, source)
        return DTensor.from_local(
            self._copied(name, sharded.to_local()),
            sharded.device_mesh,
            sharded.placements,
            run_check=False,
            shape=sharded.shape,
            stride=sharded.stride(),
        )

    def _copied(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[name] = buffer
        return buffer.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Return when all copies are complete."""
        if any(buffer.is_pinned() for buffer in self._buffers.values()):
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Probe:
    """A batch that a saved model must predict as the model in training does."""

    batch: "PackedBatch"
    nll_T: Tensor
    """NLL of each target token under the model in training."""
    dtype: str
    """Precision that `nll_T` was computed in, as in `ModelConfig.dtype`."""
    hashes: Mapping[str, int]
    """`content_hash` of each of this rank's parts of the saved tensors, taken from the model in
    training. They are compared if the saved model is too large to be loaded again."""


@dataclass
class Snapshot:
    """A copy of a run's state in host memory; valid until the next snapshot is taken."""

    step: int
    model: "PreTrainedModel"
    """Used for its config and its adapters' config, not for its weights."""
    weights: dict[str, Tensor] | None
    """The model's saved tensors: under fsdp this rank's shards of them; otherwise, and of adapters,
    all on rank 0 and None on other ranks."""
    optimizer: dict[str, Any]
    """This rank's part of the optimizer's state, by parameter name."""
    trainer_state: dict[str, Any] = field(default_factory=dict)
    """Other state to resume from, as JSON; becomes part of state.json."""
    probe: Probe | None = None
    """Check of the written model; None skips it."""
    dtype: str = "float32"
    """Data type that the weights are written in, as in `TrainConfig.save_dtype`. Without float32
    weights training can't go on, so the optimizer's state is left out."""
    precision: str | None = None
    """Precision of training, as in `ModelConfig.dtype`. The written config names it, so that
    transformers and vLLM compute as the forward passes of training did. None: the model's dtype."""
    ends: Mapping[int, int] = field(default_factory=dict)
    """How often each token ended a trained stretch: where generation is to stop."""
    stall_seconds: float = 0.0
    """Seconds that this snapshot paused training, including the wait for the previous one."""

    def write(
        self,
        directory: str | Path,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        run: dict[str, Any] | None = None,
        group: dist.ProcessGroup | None = None,
        shared: bool = True,
    ) -> Path:
        """Write the checkpoint atomically: the directory appears complete or not at all.

        Every rank calls this. A checkpoint that fails its probe is written to `unverified-NAME`
        beside the directory, with the reason in UNVERIFIED.

        Args:
            directory: the checkpoint directory; replaced if it exists.
            tokenizer: saved beside the model.
            run: written to run.json.
            group: a gloo group of all ranks with no other use meanwhile; None for a single process.
            shared: whether all ranks see the same `directory`; if not, each writes its own part.

        Returns:
            The directory.

        Raises:
            OSError: the checkpoint could not be written; nothing is left of it.
            UnverifiedCheckpoint: the checkpoint failed its probe, on every rank.
        """
        directory, ranks = Path(directory), Ranks(group)
        scratch = directory.with_name(f".{directory.name}")
        first = ranks.rank == 0 or not shared
        try:
            with _os_errors():
                if first:
                    shutil.rmtree(scratch, ignore_errors=True)
                    (scratch / TRAINER).mkdir(parents=True)
                ranks.barrier()
                if self.dtype == "float32":
                    _write_optimizer(scratch / TRAINER / OPTIMIZER, self.optimizer, group)
                writers, dtype, unlike = self._write_checked(scratch, ranks, shared)
                if ranks.rank == 0:
                    self._write_rest(scratch, tokenizer, run, ranks.world, dtype, unlike)
                if unlike:
                    directory = directory.with_name(f"unverified-{directory.name}")
                checksums = _checksums(scratch, _own_files(scratch, ranks.rank, writers))
                write_json(scratch / TRAINER / f"files-{ranks.rank}.json", checksums)
                ranks.barrier()
                if first:
                    shutil.rmtree(directory, ignore_errors=True)
                    scratch.rename(directory)
                ranks.barrier()
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        if unlike:
            raise UnverifiedCheckpoint(str(directory), unlike)
        return directory

    def _write_checked(
        self, directory: Path, ranks: Ranks, shared: bool
    ) -> tuple[dict[str, int], str, str]:
        """Write the weights and check them: by loading them if they fit into memory again.

        Returns:
            The rank that wrote each file of weights that has its own, their data type, and what
            differs from the model in training on any rank.
        """
        if ranks.rank == 0:
            self._write_config(directory)
        reloads = ranks.from_first(self.probe is not None and can_reload(self.model))
        # Loaded weights are checked before they are rounded, which changes more than the check
        # accepts. The rank that loads them needs all files.
        dtype = "float32" if reloads else self.dtype
        first = replace(ranks, share=shared or not reloads)
        written = self._write_weights(directory, dtype, first, hashed=not reloads)
        ranks.barrier()
        difference = self._check_export(directory) if reloads and ranks.rank == 0 else ""
        unlike = next(filter(None, ranks.of_all(written.difference or difference)), "")
        if unlike or dtype == self.dtype:
            return written.writers, dtype, unlike
        for path in directory.glob("*.safetensors*"):  # there may be fewer of them now
            if written.writers.get(path.name, 0) == ranks.rank:
                path.unlink()
        written = self._write_weights(directory, self.dtype, ranks, hashed=False)
        return written.writers, self.dtype, ""

    def _write_weights(self, directory: Path, dtype: str, ranks: Ranks, *, hashed: bool) -> Written:
        """Write the weights; every rank calls this. See `write_weights`."""
        hashes = self.probe.hashes if self.probe is not None and hashed else None
        weights = self.weights or {}
        if not hasattr(self.model, "peft_config"):
            return write_weights(directory, self.model, weights, dtype, ranks, hashes)
        if ranks.rank > 0:
            return Written({})
        from otr.models.lora import WEIGHTS_FILE, write_adapter

        tensors = {name: rounded(tensor, dtype) for name, tensor in weights.items()}
        write_adapter(directory, self.model, tensors)
        if hashes is None:
            return Written({})
        difference = first_difference(weights, weights, [hashes], 0)
        return Written({}, difference or file_difference(directory / WEIGHTS_FILE, tensors))

    def _write_config(self, directory: Path) -> None:
        """Write all that `save_pretrained` does except the weights; an adapter has its own."""
        from otr.models.processor import copy_processor

        if hasattr(self.model, "peft_config"):
            return
        self.model.save_pretrained(directory, state_dict={})
        copy_processor(self.model, directory)
        if self.precision is not None:
            path = directory / "config.json"
            write_json(path, json.loads(path.read_text()) | {"dtype": self.precision})

    def _write_rest(
        self,
        directory: Path,
        tokenizer: "PreTrainedTokenizerBase",
        run: dict[str, Any] | None,
        world: int,
        dtype: str,
        unlike: str,
    ) -> None:
        """Write all but the weights and the optimizer's state."""
        from otr.models.stops import trained_stops, with_stop, write_stops  # imports transformers

        stops = trained_stops(self.ends, tokenizer)
        (with_stop(tokenizer, stops) if stops else tokenizer).save_pretrained(directory)
        if run is not None:
            write_json(directory / "run.json", run)
        if unlike:
            write_json(directory / UNVERIFIED, {"step": self.step, "reason": unlike})
        if stops:
            write_stops(directory, stops, self.model)
        state = {"step": self.step, "world": world, **self.trainer_state}
        state |= {} if dtype == "float32" else {"dtype": dtype}
        write_json(directory / TRAINER / STATE, state)

    def _check_export(self, directory: Path) -> str:
        """Load the written model as any user would, and compare its NLL with the probe's.

        Both compute in the same precision. The accepted difference is in proportion to what
        rounding changes in this very model.

        Returns:
            What differs; empty if nothing does.
        """
        if self.probe is None:
            return ""
        # Imports transformers' models, which takes seconds that readers of checkpoints can save.
        from otr.loop.policy import reloaded_nll

        probe = self.probe
        try:
            reloaded = reloaded_nll(directory, self.model, probe.batch)
        except Exception as error:  # whatever it is, it must not cost the weights
            return f"it can't be loaded again: {' '.join(str(error).split())}"
        saved_T = reloaded.bfloat16_T if probe.dtype == "bfloat16" else reloaded.float32_T
        difference = _mean_difference(saved_T, probe.nll_T)
        rounding = _mean_difference(reloaded.autocast_T, reloaded.bfloat16_T)
        allowed = FLOOR + ALLOWED[probe.dtype] * rounding
        if difference <= allowed:
            return ""
        return (
            f"its NLL differs from that of the model in training by {difference:.3g} nats per "
            f"token in {probe.dtype} (rounding explains {allowed:.3g})"
        )


def save_checkpoint(
    directory: str | Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    run: dict[str, Any] | None = None,
) -> Path:
    """Write a model and its tokenizer as a Hugging Face checkpoint directory.

    Args:
        directory: a directory that does not exist.
        model: a transformers model, or a peft model whose adapters are saved.
        tokenizer: saved beside it.
        run: written to run.json.

    Returns:
        The directory.

    Raises:
        FileExistsError: the directory exists.
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} already exists: checkpoints are never overwritten")
    weights = saved_weights(model, model.state_dict())
    return Snapshot(0, model, weights, {}).write(directory, tokenizer, run=run)


def load_checkpoint(directory: str | Path) -> dict[str, Any]:
    """Load the state that a run resumes from, other than weights and optimizer.

    Returns:
        The content of state.json: {"step", "world", ...}.

    Raises:
        DamagedCheckpoint: the directory has no state.json, or it is no JSON.
        OSError: it can't be read at the moment; this says nothing about the checkpoint.
    """
    path = Path(directory) / TRAINER / STATE
    try:
        return json.loads(path.read_text())
    except (*MISSING, ValueError) as error:
        raise DamagedCheckpoint(
            f"no {TRAINER}/{STATE} in {directory}: training cannot resume from it ({error})"
        ) from error


def check_checkpoint(directory: str | Path) -> None:
    """Compare a checkpoint's files with its lists of checksums.

    Raises:
        DamagedCheckpoint: a file is missing or differs; the message names it.
        OSError: a file can't be read at the moment.
    """
    directory = Path(directory)
    for rank in range(load_checkpoint(directory)["world"]):
        listed = directory / TRAINER / f"files-{rank}.json"
        try:
            expected = json.loads(listed.read_text())
            found = _checksums(directory, map(directory.joinpath, expected))
        except (*MISSING, ValueError) as error:
            raise DamagedCheckpoint(f"{directory} is incomplete: {error}") from error
        for name, checksum in expected.items():
            if found[name] != checksum:
                raise DamagedCheckpoint(f"{directory / name} is not as it was written")


def saved_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors of a state dict that are saved.

    Of tied weights this is the first; of a model with adapters, the adapters alone.
    """
    if hasattr(model, "peft_config"):
        from otr.models.lora import adapter_state

        return adapter_state(model, weights)
    first: dict[int, str] = {}
    named = [*model.named_parameters(remove_duplicate=False)]
    tied = {name for name, p in named if first.setdefault(id(p), name) != name}
    return {name: tensor for name, tensor in weights.items() if name not in tied}


def _write_optimizer(
    directory: Path, optimizer: dict[str, Any], group: dist.ProcessGroup | None
) -> None:
    if optimizer or group is not None:  # with a group every rank takes part, even without state
        dcp.save(optimizer, checkpoint_id=directory, process_group=group, no_dist=group is None)


def _own_files(directory: Path, rank: int, writers: Mapping[str, int]) -> Iterator[Path]:
    """Yield the files that this rank wrote: its shards and weights, and on rank 0 all others."""
    for path in sorted(directory.rglob("*")):
        writer = shard_rank(path) if path.suffix == ".distcp" else writers.get(path.name, 0)
        # A name with "files-" may be a list that another rank is writing at this moment.
        if path.is_file() and writer == rank and not path.name.startswith("files-"):
            yield path


def _checksums(directory: Path, paths: Iterable[Path]) -> dict[str, list[Any]]:
    """Return {path within the directory: [size in bytes, SHA-256]}."""
    checksums: dict[str, list[Any]] = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        checksums[str(path.relative_to(directory))] = [path.stat().st_size, digest]
    return checksums


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the errors of all writers into OSError, but not the loss of another rank."""
    try:
        yield
    except dcp.CheckpointException as error:  # a BaseException: no caller would catch it
        first = next(iter(error.failures.values()))[0]
        raise OSError(str(first)) from first
    except (RuntimeError, SafetensorError) as error:  # raised on a full disk
        if is_lost_peer(error):
            raise
        raise OSError(str(error)) from error


def _mean_difference(one_T: Tensor, other_T: Tensor) -> float:
    return float((one_T - other_T).abs().sum()) / max(1, len(one_T))
