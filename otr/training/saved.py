"""The checkpoints of a run in its storage: written while training goes on, found again later.

In: `Snapshot`s; a run's directory at Ray Train's storage, local or on an object store. Out:
`step-000100` directories there, each whole or not there; the newest one that is whole.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import ray.train
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from otr.checkpoint import (
    STATE,
    TRAINER,
    DamagedCheckpoint,
    Snapshot,
    check_checkpoint,
    checkpoint_name,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


COPIES = 4
KEPT = 2  # of the last checkpoints; the best by validation stays too


def settle(directory: str) -> tuple[str | None, list[str]]:
    """Put a run's checkpoints in order before it begins again.

    Those that are damaged are renamed to damaged-step-..., what a killed process left half-written
    is removed. On an object store sizes are compared, in a directory the content too.

    Returns:
        The name of the newest checkpoint, which is whole (None: there is none), and what was found.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    names = _names(fs, root)[::-1]
    for name in names:
        if name.startswith(".step-"):
            fs.rm(f"{root}/{name}", recursive=True)
    found, notes = None, []
    for name in (name for name in names if name.startswith("step-")):
        path, aside = f"{root}/{name}", f"{root}/damaged-{name}"
        try:
            if isinstance(fs, LocalFileSystem):
                check_checkpoint(path)
            else:
                _check_sizes(fs, path)
        except DamagedCheckpoint as error:
            notes.append(str(error))
            if fs.exists(aside):
                fs.rm(aside, recursive=True)
            fs.mv(path, aside, recursive=True)
        else:
            found = name
            break
    _forget_lost(fs, root)
    return found, notes


def best(directory: str) -> str | None:
    """Name of the checkpoint of a run with the lowest validation NLL; None: it never measured."""
    fs, root = fsspec.core.url_to_fs(directory)
    measured = {}
    for name in (name for name in _names(fs, root) if name.startswith("step-")):
        with suppress(OSError, KeyError, json.JSONDecodeError):
            state = json.loads(fs.cat_file(f"{root}/{name}/{TRAINER}/{STATE}"))
            measured[name] = state["metrics"]["val_nll"]
    return min(measured, key=lambda name: measured[name], default=None)


def drop_old(directory: str) -> None:
    """Remove a run's checkpoints but the last KEPT and the best, if they can be removed."""
    fs, root = fsspec.core.url_to_fs(directory)
    stays = best(directory)
    for name in [name for name in _names(fs, root) if name.startswith("step-")][:-KEPT]:
        if name != stays:
            with suppress(OSError):
                fs.rm(f"{root}/{name}", recursive=True)


def _names(fs: AbstractFileSystem, root: str) -> list[str]:
    """What lies in a directory now, sorted."""
    fs.invalidate_cache()  # of an object store's listings, which were read before
    there = fs.ls(root, detail=False) if fs.exists(root) else []
    return sorted(path.rstrip("/").rpartition("/")[2] for path in there)


def _check_sizes(fs: AbstractFileSystem, path: str) -> None:
    try:
        world = json.loads(fs.cat_file(f"{path}/{TRAINER}/{STATE}"))["world"]
        for rank in range(world):
            listed = json.loads(fs.cat_file(f"{path}/{TRAINER}/files-{rank}.json"))
            for name, (size, _) in listed.items():
                if fs.size(f"{path}/{name}") != size:
                    raise DamagedCheckpoint(f"{path}/{name} is not as it was written")
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise DamagedCheckpoint(f"{path} is incomplete: {error}") from error


def _forget_lost(fs: AbstractFileSystem, root: str) -> None:
    """Remove Ray's list of checkpoints if one of them is gone: Ray would refuse to begin."""
    listed = f"{root}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    if fs.exists(listed):
        names = set(re.findall(r"step-\d+", fs.cat_file(listed).decode()))
        if not all(fs.exists(f"{root}/{name}") for name in names):
            fs.rm(listed)


class Storage:
    """Where a run's checkpoints are kept; every rank has one.

    Args:
        directory: the run's, a path or URI.
        group: gloo ranks that write together and do nothing else (None: a single rank).
    """

    def __init__(self, directory: str, group: dist.ProcessGroup | None) -> None:
        context = ray.train.get_context().get_storage()
        self.fs, self.root = context.storage_filesystem, context.experiment_fs_path
        self.local = isinstance(self.fs, pyarrow.fs.LocalFileSystem)
        self.directory, self.group = directory, group
        self.write_seconds: float | None = None
        """That the last checkpoint took, beside training."""
        self._written = Event()
        self._written.set()

    @contextmanager
    def directory_of(self, name: str | None) -> Iterator[Path | None]:
        """A checkpoint as a local directory, fetched where it has to be."""
        if name is None or self.local:
            yield None if name is None else Path(self.root) / name
            return
        with TemporaryDirectory() as scratch:
            here = Path(scratch) / name
            there = f"{self.root}/{name}"
            pyarrow.fs.copy_files(there, str(here), source_filesystem=self.fs)
            check_checkpoint(here)
            yield here

    def remind(self, name: str, metrics: dict[str, Any]) -> None:
        """Tell Ray Train of a checkpoint that was written, if it died before it could note that."""
        known = ray.train.get_checkpoint()
        if known is None or Path(known.path).name != name:
            ray.train.report(
                metrics,
                checkpoint=Checkpoint(f"{self.root}/{name}", self.fs),
                checkpoint_dir_name=name,
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
                delete_local_checkpoint_after_upload=False,
            )

    def report(
        self,
        metrics: dict[str, Any],
        snapshot: Snapshot | None,
        tokenizer: "PreTrainedTokenizerBase",
        run: dict[str, Any] | None,
    ) -> None:
        """To Ray Train; a snapshot is written in the background, in the order of the reports."""
        upload = partial(self._upload, snapshot, tokenizer, run)
        if snapshot is not None:
            self._written.clear()
        name = checkpoint_name(int(metrics["step"]))
        ray.train.report(
            metrics,
            checkpoint=Checkpoint(f"{self.root}/{name}", self.fs) if snapshot else None,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=False,  # it is the uploaded one
        )

    def flush(self, seconds: float | None = None) -> None:
        """Wait for what is being written, at most so long."""
        self._written.wait(seconds)

    def _upload(
        self,
        snapshot: Snapshot | None,
        tokenizer: "PreTrainedTokenizerBase",
        run: dict[str, Any] | None,
        _: Checkpoint,
        name: str,
    ) -> Checkpoint:
        assert snapshot is not None  # Ray asks for this only where a checkpoint is reported
        began, target = monotonic(), f"{self.root}/{name}"
        try:
            if self.local:
                snapshot.write(target, tokenizer, run=run, group=self.group)
            else:
                with TemporaryDirectory() as scratch:
                    here = f"{scratch}/{name}"
                    snapshot.write(here, tokenizer, run=run, group=self.group, shared=False)
                    self._copy(here, target)
            if snapshot.weights is not None:  # rank 0 has them
                drop_old(self.directory)
        finally:
            self.write_seconds = monotonic() - began
            self._written.set()
        return Checkpoint(target, self.fs)

    def _copy(self, here: str, there: str) -> None:
        """To the object store. Tried again here: Ray would have this rank alone write once more."""
        for attempt in range(COPIES):
            try:
                return pyarrow.fs.copy_files(here, there, destination_filesystem=self.fs)
            except OSError as error:
                if attempt == COPIES - 1:
                    raise OSError(f"{there} can't be written: {error}"[:200]) from None
                sleep(2**attempt)
