"""Private interfaces of Ray 2.60 and vLLM 0.29, each with the reason for its use.

`tests/evals/test_compat.py` fails when one of them is removed or behaves differently. Worker
processes import this module before they know whether they need Ray or vLLM, so both are imported
inside the functions.
"""

from __future__ import annotations

from typing import Any


def stop_serve_updates() -> None:
    """Stop this process's subscription to changes in Ray Serve.

    A background thread of Serve requests updates from its controller, and again after each one. If
    an update arrives while Ray shuts down, the next request reaches a Ray that no longer exists,
    which ends the process. `serve.shutdown` leaves the thread running.

    Upstream: ray/serve/_private/router.py and long_poll.py. Serve's Java client had the same crash:
    https://github.com/ray-project/ray/pull/27945
    """
    from ray.serve._private.router import SharedRouterLongPollClient, SingletonThreadRouter
    from ray.serve.context import _get_global_client

    client, loop = _get_global_client(False), SingletonThreadRouter._asyncio_loop
    if client is not None and loop is not None:
        # It is cached: this returns the subscription that the router thread uses.
        shared = SharedRouterLongPollClient.get_or_create(client._controller, loop)
        shared.long_poll_client.stop()


def ray_vllm_engine() -> type[Any]:
    """Return Ray's class that starts vLLM in a replica, as a base class.

    Ray's LLMConfig chooses the processes of a replica itself and offers no option for it, but takes
    another engine class from the environment variable RAYLLM_VLLM_ENGINE_CLS. Subclasses override
    `start` and `_start_async_llm_engine`.

    Upstream: ray/llm/_internal/serve/engines/vllm/vllm_engine.py
    """
    from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine

    return VLLMEngine


def skip_model_download(llm_config: Any) -> None:
    """Let an engine start without Ray's task that downloads the model to the node.

    Ray offers this switch to callbacks only, and exports no base class for one.

    Upstream: ray/llm/_internal/common/callbacks/base.py,
    https://github.com/ray-project/ray/pull/57257
    """
    llm_config.get_or_create_callback().ctx.run_init_node = False


def use_executor(vllm_config: Any, name: str) -> None:
    """Let vLLM run its workers in an executor class, given by its full name.

    Ray overwrites the engine argument `distributed_executor_backend`, with "mp" on the CPU and with
    "ray" on GPUs, and refuses others there.

    Upstream: ray/llm/_internal/serve/engines/vllm/vllm_models.py
    """
    vllm_config.parallel_config.distributed_executor_backend = name


def executors() -> tuple[type[Any], type[Any]]:
    """Return vLLM's executors of one worker and of several on one host, as base classes.

    Subclasses override `_init_executor`, which runs in the engine's process before any worker.

    Upstream: vllm/v1/executor/uniproc_executor.py and multiproc_executor.py
    """
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor, MultiprocExecutor


def vllm_client(server: Any) -> Any:
    """Return the AsyncLLM of a Ray LLMServer.

    The server's own methods accept OpenAI requests only, one per call; they take no LoRARequest and
    do not report whether the prefix cache was reset.

    Upstream: ray/llm/_internal/serve/engines/vllm/vllm_engine.py
    """
    return server.engine._engine_client


def pack_cpu_weights(model: Any) -> None:
    """Rebuild the packed copies of linear weights that vLLM computes with on the CPU.

    `reload_weights` packs only the layers that the checkpoint names. A tied output head is not
    among them: it would go on using the old embedding, and every log-probability would be wrong
    without any error.

    Upstream: vllm/model_executor/layers/utils.py; no thread about reloading was found.
    """
    packed = [layer for layer in model.modules() if hasattr(layer, "cpu_linear")]
    if not packed:  # on a GPU, where the function below may not be importable
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in packed:
        if layer.weight.numel():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
