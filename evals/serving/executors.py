"""vLLM's workers as processes of their replica, which end with it.

Ray's own executor puts each worker of a GPU into an actor: another system than on the CPU, whose
workers outlive a replica that is killed. Here one worker runs in the engine's process, and several,
which share a model on the GPUs of one node, are its children.
"""

from __future__ import annotations

from evals._compat import executors
from evals.serving.worker_extension import end_with_parent

_One, _Several = executors()


class OneWorker(_One):  # type: ignore[misc, valid-type]
    """The only worker, in the engine's process."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()


class SeveralWorkers(_Several):  # type: ignore[misc, valid-type]
    """A process per GPU; vLLM ends them when the engine's process ends."""

    def _init_executor(self) -> None:
        end_with_parent()
        super()._init_executor()
