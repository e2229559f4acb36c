"""vLLM's engine in a replica, in as few processes as possible.

Ray imports `LeanVLLMEngine` in the replica, by the name in RAYLLM_VLLM_ENGINE_CLS. Each process
that it leaves out would spend about 15 s of CPU time on importing torch and vLLM.
"""

from __future__ import annotations

import asyncio
from typing import Any

from evals import gpu
from evals._compat import ray_vllm_engine, skip_model_download, use_executor


class LeanVLLMEngine(ray_vllm_engine()):  # type: ignore[misc]
    """Ray's VLLMEngine for workers of this host and a model on a local or shared disk."""

    async def start(self) -> None:
        """Start the engine without a task that downloads the model."""
        skip_model_download(self.llm_config)
        if share := self.llm_config.engine_kwargs.get("gpu_memory_utilization"):
            await asyncio.to_thread(gpu.wait_for_memory, share)
        await super().start()

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, group: Any) -> Any:
        alone = engine_config.parallel_config.world_size == 1
        name = "OneWorker" if alone else "SeveralWorkers"
        use_executor(engine_config, f"evals.serving.executors.{name}")
        return super()._start_async_llm_engine(engine_args, engine_config, group)
