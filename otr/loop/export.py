"""A model's weights as the safetensors files of a Hugging Face directory, written by all ranks.

Under fsdp each rank holds a shard of each tensor. The tensors are divided into files, and the files
among the ranks. Files are written in rounds, one per rank at a time: first the ranks exchange the
shards of the round's files, then each writes its own. So no rank holds more of the model than its
shards and one file. Otherwise rank 0 holds all tensors and writes all files, in the same way.

transformers may store a model's tensors otherwise than the module holds them, such as each expert
of a mixture on its own. Tensors that are stored together go to the same file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from otr._compat import ignored_when_saved, stored_tensors, weight_conversions
from otr.files import write_json

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
"""As in transformers.utils, whose import takes seconds that readers of checkpoints can save."""
FILE_BYTES = 2 * 10**9
"""Size of a file of a large model; the tensors at its ends may make it larger."""
RELOAD_SHARE = 0.5
"""Largest share of a machine's memory that the saved model may take when it is loaded again."""


@dataclass(frozen=True)
class Ranks:
    """The processes that write together."""

    group: dist.ProcessGroup | None
    """gloo ranks; None for a single process."""
    share: bool = True
    """Whether each rank writes its part of sharded weights; if not, rank 0 writes all files."""

    @property
    def rank(self) -> int:
        """Rank of this process."""
        return 0 if self.group is None else dist.get_rank(self.group)

    @property
    def world(self) -> int:
        """Number of ranks."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def barrier(self) -> None:
        """Wait until all ranks call this."""
        if self.group is not None:
            dist.barrier(self.group)

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        values = [value]
        if self.group is not None:
            dist.broadcast_object_list(values, group_src=0, group=self.group)
        return values[0]

    def of_all(self, value: Any) -> list[Any]:
        """Return the values of all ranks, on every rank."""
        values = [value] * self.world
        if self.group is not None:
            dist.all_gather_object(values, value, group=self.group)
        return values


@dataclass(frozen=True)
class Written:
    """The files of a model's weights."""

    writers: dict[str, int]
    """The rank that wrote each file."""
    difference: str = ""
    """What differs from the model in training, as this rank sees it; empty if nothing does."""


@dataclass(frozen=True)
class _File:
    name: str
    writer: int
    groups: list[list[str]]
    """Names of the model's tensors in it; those of a group are stored together."""


def reload_bytes(model: nn.Module) -> int:
    """Return the memory that a model takes when it is loaded on the CPU, in bytes."""
    return sum(4 * p.numel() if p.is_floating_point() else p.nbytes for p in model.parameters())


def can_reload(model: nn.Module) -> bool:
    """Return whether this machine has the memory to load a saved model again during training."""
    return reload_bytes(model) <= RELOAD_SHARE * psutil.virtual_memory().total


def content_hash(tensor: Tensor) -> int:
    """Return a hash of a tensor's bits; under fsdp of this rank's shard."""
    local = local_part(tensor.detach())
    return int(torch.hash_tensor(local).view(torch.int64)) if local.numel() else 0


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a DTensor, and any other tensor as it is."""
    return cast("DTensor", tensor).to_local() if hasattr(tensor, "to_local") else tensor


def write_weights(
    directory: Path,
    model: "PreTrainedModel",
    weights: Mapping[str, Tensor],
    dtype: str,
    ranks: Ranks,
    hashes: Mapping[str, int] | None = None,
) -> Written:
    """Write a model's weights, and the index of their files if there are several.

    Every rank calls this.

    Args:
        directory: an existing directory.
        model: tells how its tensors are stored; on other ranks than the first it may be empty.
        weights: on the CPU: this rank's shards as FSDP2 makes them, in the same order on all ranks;
            or on rank 0 all tensors and on others none.
        dtype: data type of the written weights, as in `TrainConfig.save_dtype`.
        ranks: the processes that write.
        hashes: the `content_hash` of this rank's part of each tensor, to be compared with what is
            written; None on rank 0 compares nothing.

    Raises:
        OSError, RuntimeError, SafetensorError: a file can't be written.
    """
    planned = None
    if ranks.rank == 0:
        sharded = any(hasattr(tensor, "to_local") for tensor in weights.values())
        writers = ranks.world if sharded and ranks.share else 1
        # Only rank 0's model was loaded from files, so that it knows how they name tensors.
        conversions = weight_conversions(model)
        planned = _plan(model, weights, dtype, writers), writers, conversions, hashes is not None
    files, writers, conversions, compares = ranks.from_first(planned)
    expected = ranks.of_all(hashes or {}) if compares else []
    difference = ""
    names: dict[str, tuple[str, int]] = {}
    for first in range(0, len(files), writers):
        in_round = files[first : first + writers]
        whole = _exchange(in_round, weights, ranks)
        mine = next((file for file in in_round if file.writer == ranks.rank), None)
        if mine is None:
            continue
        if compares:
            difference = difference or first_difference(whole, weights, expected, ranks.rank)
        tensors: dict[str, Tensor] = {}
        for group in mine.groups:
            own = {name: rounded(whole.pop(name), dtype) for name in group}
            stored = stored_tensors(model, own, conversions)
            tensors |= {name: tensor.contiguous() for name, tensor in stored.items()}
        save_file(tensors, directory / mine.name, metadata={"format": "pt"})
        if compares:
            difference = difference or file_difference(directory / mine.name, tensors)
        names |= {name: (mine.name, tensor.nbytes) for name, tensor in tensors.items()}
    by_rank = ranks.of_all(names)
    if ranks.rank == 0 and len(files) > 1:
        _write_index(directory, by_rank)
    return Written({file.name: file.writer for file in files}, difference)


def file_difference(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Read a safetensors file; return which tensor differs from what was written, if any."""
    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            if content_hash(file.get_tensor(name)) != content_hash(tensor):
                return f"its tensor {name} is not in {path.name} as it was written"
    return ""


def first_difference(
    whole: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    hashes: Sequence[Mapping[str, int]],
    rank: int,
) -> str:
    """Return which tensor differs from the hashes that the ranks took of their parts, if any."""
    for name, tensor in whole.items():
        sharded = hasattr(weights[name], "to_local")
        parts = _shards(tensor, len(hashes)) if sharded else [tensor]
        expected = hashes if sharded else [hashes[rank]]
        if any(content_hash(p) != each[name] for p, each in zip(parts, expected, strict=False)):
            return f"its tensor {name} differs from that of the model in training"
    return ""


def rounded(tensor: Tensor, dtype: str) -> Tensor:
    """Return a tensor in a data type of `TrainConfig.save_dtype`."""
    return tensor.bfloat16() if dtype == "bfloat16" and tensor.is_floating_point() else tensor


def _plan(
    model: "PreTrainedModel", weights: Mapping[str, Tensor], dtype: str, writers: int
) -> list[_File]:
    """Divide a model's tensors, in their order, into files of about the same size for each rank."""
    empty = {
        name: rounded(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"), dtype)
        for name, tensor in weights.items()
        if name not in ignored_when_saved(model)
    }
    size_of = {name: tensor.nbytes for name, tensor in empty.items()}
    total = max(1, sum(size_of.values()))
    count = writers * ceil(total / (writers * FILE_BYTES))
    by_number: dict[int, list[list[str]]] = {}
    start = 0
    for group in _stored_together(model, empty):
        size = sum(map(size_of.__getitem__, group))
        number = (2 * start + size) * count // (2 * total)  # where the group's middle lies
        by_number.setdefault(number, []).append(group)
        start += size
    files = [*by_number.values()]  # fewer than `count` if a tensor is larger than a file
    stem, _, suffix = SAFE_WEIGHTS_NAME.rpartition(".")
    return [
        _File(
            f"{stem}-{i + 1:05d}-of-{len(files):05d}.{suffix}"
            if len(files) > 1
            else SAFE_WEIGHTS_NAME,
            i % writers,
            groups,
        )
        for i, groups in enumerate(files)
    ]


def _stored_together(model: "PreTrainedModel", empty: Mapping[str, Tensor]) -> list[list[str]]:
    """Return the smallest groups of tensors that can be stored without the others.

    Almost always each tensor is a group; otherwise those of a module, of its parent and so on.

    Args:
        model: the model.
        empty: its tensors on the meta device.
    """
    conversions = weight_conversions(model)

    def stored(names: Sequence[str]) -> dict[str, torch.Size] | None:
        try:
            tensors = stored_tensors(model, {name: empty[name] for name in names}, conversions)
        except Exception:  # of any of transformers' operations: some tensors are missing
            return None
        return {name: tensor.shape for name, tensor in tensors.items()}

    whole = stored([*empty])
    depth = max((name.count(".") for name in empty), default=0)
    for dropped in range(depth + 1):
        parents = {name: name.rsplit(".", dropped)[0] if dropped else name for name in empty}
        groups = [[*names] for _, names in groupby(empty, parents.__getitem__)]
        parts = [stored(group) for group in groups]
        if None not in parts and {n: s for part in parts for n, s in (part or {}).items()} == whole:
            return groups
    return [[*empty]]


def _exchange(
    files: Sequence[_File], weights: Mapping[str, Tensor], ranks: Ranks
) -> dict[str, Tensor]:
    """Send each file's shards to the rank that writes it; return the tensors of this rank's file.

    Args:
        files: at most one per rank.
        weights: as for `write_weights`.
        ranks: the processes that write.
    """
    whole: dict[str, Tensor] = {}
    pending: list[dist.Work | None] = []
    for file in files:
        mine = file.writer == ranks.rank
        for name in (name for group in file.groups for name in group):
            if not hasattr(weights.get(name), "to_local"):
                whole |= {name: weights[name]} if mine else {}
            elif mine:
                whole[name], received = _receive(weights[name], ranks)
                pending += received
            elif (shard := local_part(weights[name])).numel():
                sent = dist.isend(shard.contiguous(), group=ranks.group, group_dst=file.writer)
                pending.append(sent)
    for work in pending:
        if work is not None:
            work.wait()
    return whole


def _receive(part: Tensor, ranks: Ranks) -> tuple[Tensor, list[dist.Work | None]]:
    """Begin to receive all shards of a tensor; return it, and what to wait for."""
    whole, pending = torch.empty(part.shape, dtype=part.dtype), []
    for rank, shard in enumerate(_shards(whole, ranks.world)):
        if rank == ranks.rank:
            shard.copy_(local_part(part))
        elif shard.numel():
            pending.append(dist.irecv(shard, group=ranks.group, group_src=rank))
    return whole, pending


def _shards(whole: Tensor, world: int) -> Sequence[Tensor]:
    """Return the views of a tensor that FSDP2 gives to the ranks; the last ranks may get none."""
    return whole.chunk(world)


def _write_index(directory: Path, by_rank: Sequence[Mapping[str, tuple[str, int]]]) -> None:
    """Write the file that tells in which file each tensor is."""
    names = {name: each for part in by_rank for name, each in part.items()}
    index = {
        "metadata": {"total_size": sum(size for _, size in names.values())},
        "weight_map": {name: file for name, (file, _) in sorted(names.items())},
    }
    write_json(directory / SAFE_WEIGHTS_INDEX_NAME, index)
