"""vLLM's engine as Ray Serve starts it, without the processes that a local model does not need.

In: the LLMConfig of a deployment (Ray imports this class in the replica, by the name in
RAYLLM_VLLM_ENGINE_CLS). Out: the same engine, ready earlier: each process left out would have
spent some 15 s of CPU time importing torch and vLLM.
"""

from __future__ import annotations

from typing import Any

from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine


class LeanVLLMEngine(VLLMEngine):
    """Ray's VLLMEngine for one CPU worker and a model on a local or shared disk."""

    async def start(self) -> None:
        """Start without the task that would download the model."""
        callback = self.llm_config.get_or_create_callback()
        assert callback is not None
        callback.ctx.run_init_node = False
        await super().start()

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, group: Any) -> Any:
        # Ray asks for vLLM's multi-process executor; with one worker it can live in the engine's
        # own process.
        engine_config.parallel_config.distributed_executor_backend = "uni"
        return super()._start_async_llm_engine(engine_args, engine_config, group)
