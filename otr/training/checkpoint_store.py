"""The checkpoints of a run in its storage: `step-000100` directories.

They are written while training continues. Each is complete or does not count; a run that starts
again resumes from the newest complete one. The storage is Ray Train's, local or an object store.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.fs
import ray.train
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem
from fsspec.spec import AbstractFileSystem
from ray.train import Checkpoint, CheckpointUploadMode

from otr.loop.checkpoint import (
    STATE,
    TRAINER,
    DamagedCheckpoint,
    Snapshot,
    UnverifiedCheckpoint,
    check_checkpoint,
    checkpoint_name,
)
from otr.training import _compat
from otr.training.retention import RETAINED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

UPLOAD_ATTEMPTS = 4
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Position:
    """A step of a run, and when it was reached."""

    step: int
    time: float
    """Seconds since the epoch; 0 if it is not known."""


def recover(directory: str) -> tuple[str | None, list[str]]:
    """Prepare a run's directory for a start, and find the checkpoint to resume from.

    Damaged checkpoints are renamed to damaged-step-..., and what a killed process left half-written
    is deleted. On an object store sizes are compared, in a local directory contents too.

    Returns:
        The name of the newest checkpoint, which is complete (None: there is none), and one note per
        damaged checkpoint.

    Raises:
        OSError: the storage can't be read at the moment; no checkpoint is renamed.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    for name in _names(fs, root):
        # Without its list, Ray does not look for the checkpoints that are no longer there.
        if name.startswith(".step-") or name == _compat.CHECKPOINT_LIST:
            fs.rm(f"{root}/{name}", recursive=True)
    newest, notes = None, []
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
            newest = name
            break
    return newest, notes


def best_checkpoint(directory: str) -> str | None:
    """Return the name of the run's checkpoint with the lowest validation NLL, if any has one.

    Raises:
        OSError: the storage can't be read.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    return _best({name: _state(fs, f"{root}/{name}") for name in _checkpoints(fs, root)})


def list_checkpoints(directory: str) -> list[str]:
    """Return the names of the run's checkpoints in the order of their steps.

    Raises:
        OSError: the storage can't be read.
    """
    return _checkpoints(*fsspec.core.url_to_fs(directory))


def saved_position(directory: str, name: str | None) -> Position | None:
    """Return the step and time of a checkpoint; None without one.

    Raises:
        OSError: the storage can't be read.
    """
    if name is None:
        return None
    fs, root = fsspec.core.url_to_fs(directory)
    state = _state(fs, f"{root}/{name}")
    return Position(state.get("step", 0), state.get("time", 0.0))


def check_can_go_on(directory: str) -> None:
    """Check that training can go on from the last checkpoint of a run that is to become longer.

    Raises:
        ValueError: the weights of the checkpoint are rounded.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    names = _checkpoints(fs, root)
    dtypes = [_state(fs, f"{root}/{name}").get("dtype", "float32") for name in names]
    if not names or dtypes[-1] == "float32":
        return
    last = f"{directory}/{names[-1]}"
    remedy = f"start another run from it with --model {last}"
    if fs.exists(f"{root}/{names[-1]}/adapter_config.json"):
        remedy = f"start another run from OUT after `otr merge {last} OUT`"
    if "float32" in dtypes:
        whole = [name for name, dtype in zip(names, dtypes, strict=True) if dtype == "float32"][-1]
        remedy += f", or remove it to go on from {whole}"
    raise ValueError(
        f"{last} holds weights rounded to {dtypes[-1]} (--train.save-dtype), from which training "
        f"can't go on: {remedy}"
    )


def last_report(directory: str) -> Position | None:
    """Return the last report that a `CheckpointStore` has noted; None if there is none."""
    try:
        with fsspec.open(f"{directory}/{PROGRESS}", "r") as file:
            return Position(**json.load(file))
    except (OSError, ValueError, TypeError):  # it is for a message alone
        return None


def delete_old(directory: str, retained: int = RETAINED) -> None:
    """Delete a run's checkpoints except the best and the last that all ranks have written.

    Args:
        directory: the run's directory.
        retained: number of the last ones to keep.

    Raises:
        Exception: any error of the storage; the next call deletes what is left.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    states = {name: _state(fs, f"{root}/{name}") for name in _checkpoints(fs, root)}
    complete = {n: state for n, state in states.items() if _all_wrote(fs, f"{root}/{n}", state)}
    last = [*complete][-retained:]
    for name in takewhile(lambda name: name not in last, states):
        if last and name != _best(complete):
            _delete(fs, root, name)


def delete_old_or_warn(directory: str, retained: int = RETAINED) -> None:
    """Delete as `delete_old` does; log an error of the storage, which costs only space."""
    try:
        delete_old(directory, retained)
    except Exception as error:  # any store's error
        logger.warning("could not delete old checkpoints in %s: %s", directory, error)


def delete_all(directory: str) -> None:
    """Delete every checkpoint of a run that has ended.

    Raises:
        OSError: the storage can't be written.
    """
    fs, root = fsspec.core.url_to_fs(directory)
    for name in _checkpoints(fs, root):
        _delete(fs, root, name)


def _delete(fs: AbstractFileSystem, root: str, name: str) -> None:
    """Delete a checkpoint so that an interruption leaves no valid-looking one."""
    path = f"{root}/{name}"
    if isinstance(fs, LocalFileSystem):
        path = f"{root}/.{name}"
        os.replace(f"{root}/{name}", path)
    elif fs.exists(state := f"{path}/{TRAINER}/{STATE}"):
        fs.rm(state)
    fs.rm(path, recursive=True)


def _best(states: Mapping[str, dict[str, Any]]) -> str | None:
    measured = {name: state.get("metrics", {}).get("val_nll") for name, state in states.items()}
    finite = {name: nll for name, nll in measured.items() if nll is not None and isfinite(nll)}
    return min(finite, key=lambda name: finite[name], default=None)


def _state(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json; {} if it is missing or damaged."""
    try:
        content = fs.cat_file(f"{path}/{TRAINER}/{STATE}")
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}


def _all_wrote(fs: AbstractFileSystem, path: str, state: Mapping[str, Any]) -> bool:
    """Return whether every rank's list of files exists, which it writes last."""
    lists = (f"{path}/{TRAINER}/files-{rank}.json" for rank in range(state.get("world", 0)))
    return bool(state) and all(map(fs.exists, lists))


def _checkpoints(fs: AbstractFileSystem, root: str) -> list[str]:
    return [name for name in _names(fs, root) if name.startswith("step-")]


def _names(fs: AbstractFileSystem, root: str) -> list[str]:
    """Return the names in a directory, those of checkpoints in the order of their steps."""
    fs.invalidate_cache()  # otherwise an object store's listing may be an old one
    paths = fs.ls(root, detail=False) if fs.exists(root) else []
    names = (path.rstrip("/").rpartition("/")[2] for path in paths)
    return sorted(names, key=lambda name: (len(name), name))


def _check_sizes(fs: AbstractFileSystem, path: str) -> None:
    try:
        world = json.loads(fs.cat_file(f"{path}/{TRAINER}/{STATE}"))["world"]
        for rank in range(world):
            listed = json.loads(fs.cat_file(f"{path}/{TRAINER}/files-{rank}.json"))
            for name, (size, _) in listed.items():
                if fs.size(f"{path}/{name}") != size:
                    raise DamagedCheckpoint(f"{path}/{name} is not as it was written")
    # Other errors of the storage say nothing about the checkpoint, and must not cost it.
    except (FileNotFoundError, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedCheckpoint(f"{path} is incomplete: {error}") from error


class CheckpointStore:
    """A rank's access to the checkpoints of the current run.

    Args:
        directory: the run's directory, a path or URI.
        group: gloo ranks that write together and do nothing else (None: a single rank).
        retained: number of the newest checkpoints to keep.
    """

    def __init__(
        self, directory: str, group: dist.ProcessGroup | None, retained: int = RETAINED
    ) -> None:
        self.fs, self.root = _compat.run_storage()
        self.local = isinstance(self.fs, pyarrow.fs.LocalFileSystem)
        self.directory, self.group, self.retained = directory, group, retained
        self.write_seconds: float | None = None
        """Seconds that writing the last checkpoint took; training continued meanwhile."""
        self._written = Event()
        self._written.set()

    @contextmanager
    def local_copy(self, name: str | None) -> Iterator[Path | None]:
        """Give a checkpoint as a local directory, downloaded if need be; None for None."""
        if name is None or self.local:
            yield None if name is None else Path(self.root) / name
            return
        with TemporaryDirectory() as scratch:
            copy = Path(scratch) / name
            pyarrow.fs.copy_files(f"{self.root}/{name}", str(copy), source_filesystem=self.fs)
            check_checkpoint(copy)
            yield copy

    def report_resumed(self, name: str, metrics: dict[str, Any]) -> None:
        """Report the checkpoint that the run resumes from, so that Ray Train lists it again."""
        self._note_progress(int(metrics["step"]))
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
        """Report to Ray Train; a snapshot is written in the background, in the order of reports.

        Args:
            metrics: metrics of the step, which is `metrics["step"]`.
            snapshot: state to be written as a checkpoint, if any.
            tokenizer: saved with the checkpoint.
            run: content of the checkpoint's run.json.
        """
        if snapshot is not None:
            self._written.clear()
        self._note_progress(int(metrics["step"]))
        name = checkpoint_name(int(metrics["step"]))
        ray.train.report(
            metrics,
            checkpoint=Checkpoint(f"{self.root}/{name}", self.fs) if snapshot else None,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(self._write, snapshot, tokenizer, run),
            delete_local_checkpoint_after_upload=False,  # it is the uploaded one
        )

    def _note_progress(self, step: int) -> None:
        """Note the last reported step: a run that is restarted says how much is computed again."""
        if ray.train.get_context().get_world_rank() == 0:
            with suppress(OSError), fsspec.open(f"{self.directory}/{PROGRESS}", "w") as file:
                json.dump(asdict(Position(step, time())), file)

    def flush(self, seconds: float | None = None) -> None:
        """Wait until the last snapshot is written, at most `seconds`."""
        self._written.wait(seconds)

    def _write(
        self,
        snapshot: Snapshot | None,
        tokenizer: "PreTrainedTokenizerBase",
        run: dict[str, Any] | None,
        _: Checkpoint,
        name: str,
    ) -> Checkpoint:
        assert snapshot is not None  # Ray calls this only if a checkpoint was reported
        start, target = monotonic(), f"{self.root}/{name}"
        try:
            if self.local:
                snapshot.write(target, tokenizer, run=run, group=self.group)
            else:
                with TemporaryDirectory() as scratch:
                    copy = f"{scratch}/{name}"
                    try:
                        snapshot.write(copy, tokenizer, run=run, group=self.group, shared=False)
                    except UnverifiedCheckpoint as error:
                        target = f"{self.root}/{Path(error.directory).name}"
                        self._upload(error.directory, target)
                        raise UnverifiedCheckpoint(target, error.reason) from None
                    self._upload(copy, target)
        finally:
            self.write_seconds = monotonic() - start
            self._written.set()
        if self.group is None or dist.get_rank(self.group) == 0:
            delete_old_or_warn(self.directory, self.retained)
        return Checkpoint(target, self.fs)

    def _upload(self, source: str, target: str) -> None:
        """Copy to the object store. Retries here: Ray would have this rank alone write again."""
        for attempt in range(UPLOAD_ATTEMPTS):
            try:
                return pyarrow.fs.copy_files(source, target, destination_filesystem=self.fs)
            except OSError as error:
                if attempt == UPLOAD_ATTEMPTS - 1:
                    raise OSError(f"{target} can't be written: {error}"[:200]) from None
                sleep(2**attempt)
