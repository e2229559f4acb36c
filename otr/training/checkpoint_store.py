"""The checkpoints of a run in its storage: written while training goes on, found again later.

In: `Snapshot`s; a run's directory at Ray Train's storage, local or on an object store. Out:
`step-000100` directories there, each whole or not there; the newest one that is whole.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from math import isfinite
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

from otr.loop.checkpoint import (
    STATE,
    TRAINER,
    DamagedCheckpoint,
    Snapshot,
    check_checkpoint,
    checkpoint_name,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

COPIES = 4
KEPT = 2  # of the last checkpoints; the best by validation stays too


def recover(directory: str) -> tuple[str | None, list[str]]:
    """Put a run's checkpoints in order before it begins again.

    Those that are damaged are renamed to damaged-step-..., what a killed process left half-written
    is removed. On an object store sizes are compared, in a directory the content too.

    Returns:
        The name of the newest checkpoint, which is whole (None: there is none), and what was found.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    for name in _names(fs, root):
        # Ray's list of checkpoints too: it would refuse to begin where one of them is gone.
        if name.startswith(".step-") or name == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME:
            fs.rm(f"{root}/{name}", recursive=True)
    found, notes = None, []
    for name in reversed(_checkpoints(fs, root)):
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
    return found, notes


def best_checkpoint(directory: str) -> str | None:
    """Name of the checkpoint of a run with the lowest validation NLL, of those that have one.

    Raises:
        OSError: the storage can't be read.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    return _best({name: _state(fs, f"{root}/{name}") for name in _checkpoints(fs, root)})


def list_checkpoints(directory: str) -> list[str]:
    """Names of the checkpoints of a run, in the order of their steps.

    Raises:
        OSError: the storage can't be read.
    """
    return _checkpoints(*fsspec.core.url_to_fs(directory))


def drop_old(directory: str) -> None:
    """Remove a run's checkpoints but the last KEPT that every rank has written, and their best.

    Raises:
        Exception: what the storage raises; the next call does what is left.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    states = {name: _state(fs, f"{root}/{name}") for name in _checkpoints(fs, root)}
    whole = {n: state for n, state in states.items() if _all_wrote(fs, f"{root}/{n}", state)}
    last = [*whole][-KEPT:]
    for name in takewhile(lambda name: name not in last, states):
        if last and name != _best(whole):
            _remove(fs, root, name)


def _remove(fs: AbstractFileSystem, root: str, name: str) -> None:
    """So that what is left of it, if this is cut off, is no checkpoint."""
    path = f"{root}/{name}"
    if isinstance(fs, LocalFileSystem):
        path = f"{root}/.{name}"
        os.replace(f"{root}/{name}", path)
    elif fs.exists(state := f"{path}/{TRAINER}/{STATE}"):
        fs.rm(state)
    fs.rm(path, recursive=True)


def _best(states: Mapping[str, dict[str, Any]]) -> str | None:
    measured = {name: state.get("metrics", {}).get("val_nll") for name, state in states.items()}
    known = {name: nll for name, nll in measured.items() if nll is not None and isfinite(nll)}
    return min(known, key=lambda name: known[name], default=None)


def _state(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    """What a checkpoint says of itself; of one that is damaged nothing."""
    try:
        content = fs.cat_file(f"{path}/{TRAINER}/{STATE}")
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}


def _all_wrote(fs: AbstractFileSystem, path: str, state: Mapping[str, Any]) -> bool:
    lists = (f"{path}/{TRAINER}/files-{rank}.json" for rank in range(state.get("world", 0)))
    return bool(state) and all(map(fs.exists, lists))


def _checkpoints(fs: AbstractFileSystem, root: str) -> list[str]:
    """Their names, in the order of their steps."""
    return [name for name in _names(fs, root) if name.startswith("step-")]


def _names(fs: AbstractFileSystem, root: str) -> list[str]:
    """What lies in a directory now; of equal beginnings the lower number first."""
    fs.invalidate_cache()  # of an object store's listings, which were read before
    there = fs.ls(root, detail=False) if fs.exists(root) else []
    names = (path.rstrip("/").rpartition("/")[2] for path in there)
    return sorted(names, key=lambda name: (len(name), name))


def _check_sizes(fs: AbstractFileSystem, path: str) -> None:
    try:
        world = json.loads(fs.cat_file(f"{path}/{TRAINER}/{STATE}"))["world"]
        for rank in range(world):
            listed = json.loads(fs.cat_file(f"{path}/{TRAINER}/files-{rank}.json"))
            for name, (size, _) in listed.items():
                if fs.size(f"{path}/{name}") != size:
                    raise DamagedCheckpoint(f"{path}/{name} is not as it was written")
    except (OSError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedCheckpoint(f"{path} is incomplete: {error}") from error


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
        """Tell Ray Train of the checkpoint that the run goes on from."""
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
        finally:
            self.write_seconds = monotonic() - began
            self._written.set()
        if snapshot.weights is not None:  # rank 0 has them
            try:
                drop_old(self.directory)
            except Exception as error:  # of whatever store; the checkpoint is written, so go on
                logger.warning("old checkpoints in %s stay for now: %s", self.directory, error)
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
