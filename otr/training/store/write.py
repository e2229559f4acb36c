"""Making a packed store: Ray Data reads, renders, tokenizes and packs each part of a corpus.

Every node of the cluster takes parts. A part is written once: killed and started again, packing
goes on with the parts that are missing, and two runs that pack the same corpus at once write the
same files. Memory holds one batch of a part at a time.
"""

import gc
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from otr import files
from otr.config import DataConfig, ModelConfig
from otr.hints import full_disk
from otr.training.audit import Audit, check_source
from otr.training.corpus import pack_batches
from otr.training.sources import SourceChunk, list_chunks
from otr.training.store import layout, version
from otr.training.store.layout import INDEX, Index, Part
from otr.training.store.read import checksum

MAX_PARTS = 256  # of a corpus; a task packs one
TASK_CPUS = 0.9  # below 1, so that two cores hold a worker, the driver of a trial and a task
SMALL_BYTES = 16 * 2**20  # of a corpus that is packed in one process
LEFTOVER_SECONDS = 3600  # a file that is being written changes with every batch
_COUNTS = ("records", "rejected", "rows", "tokens")


@dataclass(frozen=True)
class Progress:
    """How far packing is."""

    parts: int
    """Parts that are done."""
    all_parts: int
    done_here: int = 0
    """Those of them that this call packed; the counts below are of these."""
    records: int = 0
    rejected: int = 0
    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class _Planned:
    """A part of the corpus that is to be packed."""

    name: str
    source: str
    chunks: tuple[SourceChunk, ...]
    version: Any
    """Changes when the text does."""


def ensure_store(
    config: DataConfig,
    model: ModelConfig,
    root: str,
    report: Callable[[Progress], None] = lambda progress: None,
) -> str:
    """Return the path of the corpus's packed store; make it if it is not complete.

    Ray must be running.

    Args:
        config: the corpus.
        model: the model whose tokenizer is used.
        root: directory or URI of the stores.
        report: called before the first batch and after each, unless all is packed already.

    Raises:
        ValueError: a file is missing, can't be read or changed while it was packed, too many
            records are rejected, no record can be used, none of one path, or the storage is full.
    """
    plan = _plan(config)
    path = f"{root}/{_name(plan, config, model)}"
    fs, inner = fsspec.core.url_to_fs(path)
    if not fs.exists(f"{inner}/{INDEX}"):
        _make(plan, config, model, path, report)
    index = read_index(path)
    audit = Audit(config.max_rejected, config.skip_bad)
    audit.add(part.audit for part in index.parts)
    audit.check()
    if not index.rows:
        raise ValueError(f"the corpus is empty: there is no record in {', '.join(config.paths)}")
    for source, rows in index.rows_by_source().items():
        if config.weights and not rows:
            raise ValueError(f"{source} has a weight, but no record that can be used: leave it out")
        own = [json.loads(part.audit)["rows"] for part in index.parts if part.source == source]
        check_source(config, source, sum(own), rows)
    return path


def read_index(path: str) -> Index:
    """Return the index of a complete store at a path or URI.

    Raises:
        ValueError: it was written by another version of otr.
        OSError: there is none.
    """
    fs, inner = fsspec.core.url_to_fs(path)
    return layout.index_from(fs.cat_file(f"{inner}/{INDEX}").decode(), path)


def names(path: str) -> set[str]:
    """Return the names of the files of a store at a path or URI."""
    fs, inner = fsspec.core.url_to_fs(path)
    fs.invalidate_cache()  # otherwise an object store's listing may be an old one
    return {found.rpartition("/")[2] for found in fs.ls(inner, detail=False)}


def _plan(config: DataConfig) -> list[_Planned]:
    """Return the parts of a corpus; each belongs to one source.

    Raises:
        ValueError: a path does not exist or holds no file of a known format.
    """
    most = max(1, MAX_PARTS // len(config.paths))
    plan: list[_Planned] = []
    for source in config.paths:
        chunks = list_chunks([source], config.split)
        count = min(len(chunks), most)
        bounds = [len(chunks) * part // count for part in range(count + 1)]
        for start, end in pairwise(bounds):
            some = tuple(chunks[start:end])
            plan.append(_Planned(f"part-{len(plan):05d}", source, some, version.of_text(some)))
    return plan


def _name(plan: Sequence[_Planned], config: DataConfig, model: ModelConfig) -> str:
    """Return the name of the store's directory: a digest of all that decides its content."""
    texts = [[planned.source, planned.version] for planned in plan]
    options = [config.columns, config.sequence_length, config.train_on, config.over_long]
    return version.digest([layout.FORMAT, texts, options, config.skip_bad, version.of_model(model)])


def _make(
    plan: Sequence[_Planned],
    config: DataConfig,
    model: ModelConfig,
    path: str,
    report: Callable[[Progress], None],
) -> None:
    done = {planned.name: _finished(path, planned.name) for planned in plan}
    missing = [number for number, planned in enumerate(plan) if done[planned.name] is None]
    progress = Progress(len(plan) - len(missing), len(plan))
    report(progress)
    fs, inner = fsspec.core.url_to_fs(path)
    fs.makedirs(inner, exist_ok=True)
    if isinstance(fs, LocalFileSystem):
        _remove_leftovers(Path(inner))
    for step in _all_steps(missing, plan, config, model, path):
        if "error" in step:
            raise ValueError(step["error"])
        if "part" in step:
            part = Part(**step["part"])
            done[part.name] = part
            progress = replace(progress, parts=progress.parts + 1, done_here=progress.done_here + 1)
        counts = {name: getattr(progress, name) + step.get(name, 0) for name in _COUNTS}
        progress = replace(progress, **counts)
        report(progress)
    complete = tuple(found for planned in plan if (found := done[planned.name]) is not None)
    index = Index(config.sequence_length, complete)
    _publish_text(index.to_json(), f"{path}/{INDEX}")


def _all_steps(
    missing: Sequence[int],
    plan: Sequence[_Planned],
    config: DataConfig,
    model: ModelConfig,
    path: str,
) -> Iterator[dict[str, Any]]:
    """Pack the missing parts; yield their steps (see `_pack_part`) as they come."""
    if len(missing) <= 1 or sum(map(_size, (plan[number] for number in missing))) <= SMALL_BYTES:
        for number in missing:  # here: it takes less time than the start of Ray's processes
            yield from _pack_part(number, plan, config, model, path)
        return
    import ray.data  # takes seconds

    def packed(task: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for number in task["number"]:
            for step in _pack_part(number, plan, config, model, path):
                yield {"step": np.array([json.dumps(step)], dtype=object)}

    dataset = ray.data.from_items(
        [{"number": number} for number in missing], override_num_blocks=len(missing)
    ).map_batches(packed, batch_size=None, num_cpus=TASK_CPUS)
    dataset.context.enable_progress_bars = False
    for batch in dataset.iterator().iter_batches(batch_size=None):
        yield from map(json.loads, batch["step"])


def _size(planned: _Planned) -> float:
    """Return the bytes of a part; infinity if they are not on this host's disks."""
    total = 0.0
    for chunk in planned.chunks:
        fs, inner = (None, "") if chunk.kind == "hub" else fsspec.core.url_to_fs(chunk.path)
        if not isinstance(fs, LocalFileSystem):
            return math.inf
        with suppress(OSError):  # reading the file reports the error
            total += min(chunk.end or math.inf, os.path.getsize(inner)) - chunk.start
    return total


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed processes left half made; what another run is writing stays."""
    for file in directory.glob(".*"):
        with suppress(OSError):  # another run removed it
            if time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                file.unlink()


def _finished(path: str, name: str) -> Part | None:
    """Return what a complete part holds; None if it is not complete."""
    fs, inner = fsspec.core.url_to_fs(f"{path}/{name}.json")
    with suppress(OSError, ValueError, TypeError):
        return Part(**json.loads(fs.cat_file(inner)))
    return None


def _pack_part(
    number: int,
    plan: Sequence[_Planned],
    config: DataConfig,
    model: ModelConfig,
    path: str,
) -> Iterator[dict[str, Any]]:
    """Pack one part; yield the counts of each batch, and at the end the part, or an error.

    An error that is raised in a task of Ray Data arrives as two hundred lines of its own.
    """
    try:
        with _frozen_objects():
            yield from _steps(plan[number], config, model, path)
    except (ValueError, OSError) as error:
        hint = full_disk(str(error), path)
        yield {"error": f"{error}: {hint}" if hint else str(error)}


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Exclude what exists now from garbage collections: they would take a tenth of packing's time.

    Packing makes many lists, so Python often looks through all objects of all loaded modules.
    """
    ours = not gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _steps(
    planned: _Planned, config: DataConfig, model: ModelConfig, path: str
) -> Iterator[dict[str, Any]]:
    audit = Audit(1.0, config.skip_bad)
    dtype = layout.row_dtype(config.sequence_length)
    rows = tokens = trained = examples = 0
    with FileToPublish(f"{path}/{planned.name}.rows") as file:
        for columns, text in pack_batches(planned.chunks, config, model):
            before = audit.records, audit.rejected.total()
            audit.add([text])
            packed = _packed_rows(columns, dtype)
            file.write(packed.tobytes())
            step = {
                "records": audit.records - before[0],
                "rejected": audit.rejected.total() - before[1],
                "rows": len(packed),
                "tokens": int((packed["segment_ids"] > 0).sum()),
            }
            rows, tokens = rows + step["rows"], tokens + step["tokens"]
            trained += int(packed["loss_mask"].sum())
            examples += int(packed["segment_ids"].max(axis=1, initial=0).sum())
            yield step
    if version.of_text(planned.chunks) != planned.version:
        raise ValueError(
            f"{planned.chunks[0].path} changed while it was packed: run the same command again"
        )
    part = Part(
        planned.name, planned.source, rows, tokens, trained, examples, audit=audit.to_json()
    )
    _publish_text(json.dumps(asdict(part)), f"{path}/{planned.name}.json")
    yield {"part": asdict(part)}


def _packed_rows(columns: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    rows = np.zeros(len(columns["input_ids"]), dtype)
    for name in ("input_ids", "segment_ids", "loss_mask"):
        rows[name] = columns[name]
    rows["checksum"] = [checksum(row) for row in rows]
    return rows


class FileToPublish:
    """A file of the store that appears complete or not at all.

    On local storage it is written beside its place; for an object store in the host's temporary
    directory.
    """

    def __init__(self, path: str) -> None:
        self.fs, self.inner = fsspec.core.url_to_fs(path)
        self.local = isinstance(self.fs, LocalFileSystem)
        folder = os.path.dirname(self.inner) if self.local else tempfile.gettempdir()
        self.partial = os.path.join(folder, f".{os.path.basename(self.inner)}.{uuid.uuid4().hex}")

    def __enter__(self) -> Any:
        self.file = open(self.partial, "wb")
        return self.file

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            self.file.close()
            if kind is None and self.local:
                files.publish(self.partial, self.inner)
            elif kind is None:
                self.fs.put_file(self.partial, self.inner)
        finally:
            with suppress(OSError):
                os.unlink(self.partial)


def _publish_text(text: str, path: str) -> None:
    with FileToPublish(path) as file:
        file.write(text.encode())
