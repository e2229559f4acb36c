"""Which failures restart a run, and the line that says why a run was restarted and what it cost.

A run is restarted after the loss of a process or host, and never after an error that our code
raised: that error would come again. Types tell them apart.
"""

import re
from dataclasses import dataclass

import ray.train
from ray.exceptions import OutOfMemoryError, RayError

from otr._compat import is_lost_peer
from otr.training import _compat
from otr.training.checkpoint_store import Position

MAX_DETAIL = 200  # characters
_ADVICE = ("Failed to apply UDF", "To change retry attempts", "Refer to the documentation")


class Preempted(RuntimeError):
    """The run saved and ended early because the host of a worker will be taken away."""


@dataclass(frozen=True)
class Restart:
    """A restart of a run."""

    number: int
    """Restarts of the run by this process, this one included."""
    text: str
    """One line: why, from which step, and what is computed again."""


def loss(error: BaseException) -> str:
    """Return which process, host or connection was lost; empty for an error that code raised.

    If a worker raised an error of its own, the lost connections of its peers follow from it.
    """
    if isinstance(error, Preempted | ray.train.PreemptionError):
        return "the host of a worker will be taken away"
    if isinstance(error, RayError):  # of `TorchTrainer.fit` itself
        lost = _compat.is_process_loss(error)
        return f"the process that controls the workers was lost{_detail(error)}" if lost else ""
    if isinstance(error, ray.train.ControllerError):
        failure: BaseException = error.controller_failure
        lost = _compat.is_process_loss(failure)
        return f"the workers could not be started{_detail(failure)}" if lost else ""
    failures = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        if _compat.is_process_loss(failure):
            return f"the process of worker {rank} was lost{_detail(failure)}"
    if failures and all(map(is_lost_peer, failures.values())):
        return f"workers lost the connection to each other{_detail(failures[min(failures)])}"
    return ""


def restart_text(lost: str, saved: Position | None, reached: Position | None, now: float) -> str:
    """Return the line about a restart.

    Args:
        lost: result of `loss`.
        saved: the checkpoint that the run goes on from; None: it begins again.
        reached: the last report.
        now: the current time, in seconds since the epoch, as in `Position.time`.
    """
    line, step = "begins again, since nothing was saved yet", 0
    if saved:
        line, step = f"goes on after step {saved.step}", saved.step
        line += f", saved {now - saved.time:.0f} s ago" if saved.time else ""
    if reached:
        count = max(0, reached.step - step)
        again = f"at least {count} step{' is' if count == 1 else 's are'} computed again"
        line += f"; the last report was of step {reached.step}, so {again}"
    return f"restarted, because {lost}: {line}"


def reason(error: BaseException) -> str:
    """Return the line of an error that says what went wrong: the last one before Ray's advice."""
    if isinstance(error, OutOfMemoryError):  # its last line is one of a table of processes
        used = re.search(r"was ([\d.]+) ?GB used / ([\d.]+) ?GB", str(error))
        figures = f": {used[1]} of {used[2]} GB were used" if used else ""
        return f"Ray ended it because its host had no memory left{figures}"
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(_ADVICE)]
    return lines[-1] if lines else ""


def _detail(failure: BaseException) -> str:
    line = reason(failure)[:MAX_DETAIL]
    return f" ({line})" if line else ""
