"""vLLM's engine in a replica, without the processes that a local model does not need.

Ray imports `LeanVLLMEngine` in the replica, by the name in RAYLLM_VLLM_ENGINE_CLS. Each process
that it leaves out would spend about 15 s of CPU time on importing torch and vLLM.
"""

from __future__ import annotations

from typing import Any

from evals._compat import ray_vllm_engine, skip_model_download, use_one_process


class LeanVLLMEngine(ray_vllm_engine()):  # type: ignore[misc]
    """Ray's VLLMEngine for one CPU worker and a model on a local or shared disk."""

    async def start(self) -> None:
        """Start the engine without a task that downloads the model."""
        skip_model_download(self.llm_config)
        await super().start()

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, group: Any) -> Any:
        use_one_process(engine_config)
        return super()._start_async_llm_engine(engine_args, engine_config, group)
