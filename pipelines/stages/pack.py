"""Pack the corpus of a run; trials and later runs share what is packed."""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.config.prepared import PreparedRun
from pipelines.runtime import console

if TYPE_CHECKING:
    from otr.training.store.write import Progress

FOLDER = "packed"
"""Name of the directory of packed stores below that of the runs."""


def packed_dir(run: PreparedRun) -> str:
    """Return the directory of the packed stores, which all runs of an output share."""
    return f"{run.config.output}/{FOLDER}"


def pack(run: PreparedRun) -> str:
    """Pack the training data, or find it packed; return the store's path.

    Ray must be running.

    Raises:
        ValueError: as `otr.training.store.write.ensure_store`.
    """
    from otr.training.store.write import ensure_store, read_index  # imports Ray Data

    train = run.config.train
    with console.stage("pack") as stage:
        line = _Line(stage)
        path = ensure_store(train.data, train.model, packed_dir(run), line.show)
        index = read_index(path)
        tokens = sum(part.tokens for part in index.parts)
        filled = tokens / (index.rows * index.sequence_length)
        found = "" if line.packed else "found packed: "
        stage.say(
            f"{found}{tokens:,} tokens in {index.rows:,} rows of {index.sequence_length:,}, "
            f"{filled:.1%} filled"
        )
        return path


@dataclass
class _Line:
    """The line of the stage while it packs."""

    stage: console.Stage
    packed: bool = False
    began: float = field(default_factory=time.monotonic)

    def show(self, progress: "Progress") -> None:
        """Show how far packing is, and how long the rest may take."""
        self.packed = True
        seconds = time.monotonic() - self.began
        speed = progress.tokens / seconds if seconds else 0.0
        left = ""
        if progress.parts and progress.parts < progress.all_parts:
            rest = seconds * (progress.all_parts - progress.parts) / progress.parts
            left = f", {rest:.0f} s left"
        rejected = f", {progress.rejected:,} rejected" if progress.rejected else ""
        self.stage.say(
            f"part {progress.parts} of {progress.all_parts}, {progress.records:,} records"
            f"{rejected}, {speed:,.0f} tokens/s{left}"
        )
