"""The part of a weight swap that runs inside a vLLM worker.

In: the path of a Hugging Face directory with the shapes of the model being served. Out: the
worker serves those weights. vLLM mixes `SwapWeights` into its worker class by name (engine
argument `worker_extension_cls`), so this module imports nothing heavy before it is called.
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class SwapWeights:
    """Adds weight swaps to a vLLM worker; reached through `collective_rpc`."""

    model_runner: Any

    def swap_weights(self, path: str) -> None:
        """Load the weights under `path` in place and rebuild what was derived from the old ones.

        On the CPU, vLLM keeps a packed copy of each linear weight (`layer.cpu_linear`).
        `reload_weights` packs again only the layers that the checkpoint names. A tied output
        head is not in the checkpoint: without the second step it goes on using the old
        embedding, and every log-probability is silently wrong.
        """
        self.model_runner.reload_weights(weights_path=path)
        packed = [m for m in self.model_runner.get_model().modules() if hasattr(m, "cpu_linear")]
        if not packed:
            return
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        for layer in packed:
            if layer.weight.numel():
                dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

    def end_with_server(self) -> int:
        """Make Linux kill this process when the replica that started it is gone; return its id.

        vLLM's engine process does not notice that, and would keep its memory for good.
        """
        if hasattr(ctypes.CDLL(None), "prctl"):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return os.getpid()
