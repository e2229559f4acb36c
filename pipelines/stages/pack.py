"""Pack the corpus of a run; trials and later runs share what is packed."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from otr.config import DataConfig, ModelConfig
from otr.files import existing_parent
from pipelines.config.prepared import PreparedRun
from pipelines.runtime import console
from tuning.space import config_of

if TYPE_CHECKING:
    from otr.training.corpus import CorpusReport
    from otr.training.store.write import Progress

FOLDER = "packed"
"""Name of the directory of packed stores below that of the runs."""
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def packed_dir(run: PreparedRun) -> str:
    """Return the directory of the packed stores, which all runs of an output share."""
    return f"{run.config.output}/{FOLDER}"


def pack_on_cluster(run: PreparedRun) -> list[str]:
    """Check the nodes of a cluster, then pack the training data; see `pack`.

    Raises:
        ValueError: a node can't take part in the run.
    """
    import ray

    if len(ray.nodes()) > 1:
        from pipelines.checks import ray_cluster

        ray_cluster.check_nodes(run.config)
    return pack(run)


def pack(run: PreparedRun) -> list[str]:
    """Pack the training data of every trial, or find it packed; return the stores' paths.

    Ray must be running.

    Raises:
        ValueError: as `otr.training.store.write.ensure_store`, or the disk has too little space.
    """
    return [_pack(run, data, model) for data, model in _to_pack(run)]


def _to_pack(run: PreparedRun) -> list[tuple[DataConfig, ModelConfig]]:
    """Return the pairs of data and model that the trials train on, each pair once."""
    found: list[tuple[DataConfig, ModelConfig]] = []
    for each in (config_of(run.config.train, trial) for trial in run.config.trials):
        if (each.data, each.model) not in found:
            found.append((each.data, each.model))
    return found


def _pack(run: PreparedRun, data: DataConfig, model: ModelConfig) -> str:
    from otr.training.store.write import ensure_store, read_index  # imports Ray Data

    length = data.sequence_length
    with console.stage("pack") as stage:
        line = _Line(stage, lambda: _tell(run.corpus, length, packed_dir(run)))
        path = ensure_store(data, model, packed_dir(run), line.show)
        index = read_index(path)
        tokens = sum(part.tokens for part in index.parts)
        filled = tokens / (index.rows * length)
        found = "" if line.packed else "found packed: "
        stage.say(
            f"{found}{tokens:,} tokens in {index.rows:,} rows of {length:,}, {filled:.1%} filled"
        )
        return path


def _tell(corpus: "CorpusReport", sequence_length: int, directory: str) -> None:
    """Say how much disk space and time packing takes, as far as can be told.

    Raises:
        ValueError: the disk has less space.
    """
    import ray

    from otr.training.store.layout import row_dtype

    rows = corpus.packed_rows(sequence_length)
    if rows is None or corpus.records is None:
        console.note("packing: the corpus's size is not known before it has been read")
        return
    size = rows * row_dtype(sequence_length).itemsize
    cores = max(1.0, ray.cluster_resources().get("CPU", 1.0))
    seconds = corpus.seconds * corpus.records / max(1, corpus.rows) / cores
    console.note(
        f"packing about {rows:,} rows of {sequence_length:,} tokens: {_size(size)} in {directory}, "
        f"{console.duration(max(1, seconds))}"
    )
    free = shutil.disk_usage(existing_parent(directory)).free
    if size > free:
        raise ValueError(
            f"packing needs about {_size(size)} in {directory}, which has {_size(free)} left: free "
            "space, or give another --output"
        )


def _size(count: float) -> str:
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"


@dataclass
class _Line:
    """The line of the stage while it packs."""

    stage: console.Stage
    tell: Callable[[], None]
    """Called before the first part is packed."""
    packed: bool = False
    began: float = field(default_factory=time.monotonic)

    def show(self, progress: "Progress") -> None:
        """Show how far packing is, and how long the rest may take."""
        if not self.packed:
            self.packed = True
            self.tell()
        seconds = time.monotonic() - self.began
        speed = progress.tokens / seconds if seconds else 0.0
        left = ""
        if progress.done_here and progress.parts < progress.all_parts:
            rest = seconds * (progress.all_parts - progress.parts) / progress.done_here
            left = f", {console.duration(rest)} left"
        rejected = f", {progress.rejected:,} rejected" if progress.rejected else ""
        self.stage.say(
            f"part {progress.parts} of {progress.all_parts}, {progress.records:,} records"
            f"{rejected}, {speed:,.0f} tokens/s{left}"
        )
