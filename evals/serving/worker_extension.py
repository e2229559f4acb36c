"""The part of a weight swap that runs inside a vLLM worker.

vLLM mixes `SwapWeights` into its worker class by name (engine argument `worker_extension_cls`), so
importing this module imports nothing heavy.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

from evals._compat import pack_cpu_weights

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SwapWeights:
    """Weight swaps for a vLLM worker; called through `collective_rpc`."""

    model_runner: Any
    reload_weights: Any  # of vLLM's worker: sets the configuration that weight loaders look up

    def swap_weights(self, path: str) -> None:
        """Load the weights of a Hugging Face directory in place.

        Args:
            path: a directory whose weights have the shapes of those being served.
        """
        self.reload_weights(weights_path=path)
        pack_cpu_weights(self.model_runner.get_model())

    def end_with_server(self) -> int:
        """Make this process end with its parent, see `end_with_parent`; return its pid."""
        end_with_parent()
        return os.getpid()


def end_with_parent() -> None:
    """Make Linux kill this process when the process that started it ends.

    vLLM's engine process would otherwise stay alive and keep its memory
    (https://github.com/vllm-project/vllm/issues/55510).
    """
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
