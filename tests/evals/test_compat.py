"""The private interfaces of Ray and vLLM in `evals._compat`, as they are in the pinned versions."""

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from evals import _compat
from evals.serving.plan import plan
from evals.settings import EngineSettings

ROOT = Path(__file__).parents[2]


def test_serve_updates_stop(monkeypatch):
    from ray.serve import context
    from ray.serve._private import router

    runtime = SimpleNamespace(get_worker_id=lambda: "0")
    monkeypatch.setattr(router.ray, "get_runtime_context", lambda: runtime)
    loop, controller = asyncio.new_event_loop(), object()  # the loop never runs: nothing is polled
    monkeypatch.setattr(router.SingletonThreadRouter, "_asyncio_loop", loop)
    client = SimpleNamespace(_controller=controller)
    monkeypatch.setattr(context, "_get_global_client", lambda raise_error: client)
    shared = router.SharedRouterLongPollClient.get_or_create(controller, loop)
    assert shared.long_poll_client.is_running
    _compat.stop_serve_updates()
    assert not shared.long_poll_client.is_running
    loop.close()


def test_rays_vllm_engine_has_the_methods_that_are_overridden():
    engine = _compat.ray_vllm_engine()
    assert inspect.iscoroutinefunction(engine.start)
    parameters = inspect.signature(engine._start_async_llm_engine).parameters
    assert list(parameters)[1:] == ["vllm_engine_args", "vllm_engine_config", "placement_group"]
    assert "self._engine_client = self._start_async_llm_engine(" in inspect.getsource(engine.start)
    assert "callback.ctx.run_init_node" in inspect.getsource(engine.start)


def test_the_model_download_can_be_skipped():
    from ray.llm._internal.common.callbacks.base import CallbackBase

    callback = CallbackBase(llm_config=None)
    assert callback.ctx.run_init_node
    _compat.skip_model_download(SimpleNamespace(get_or_create_callback=lambda: callback))
    assert not callback.ctx.run_init_node


@pytest.mark.parametrize("name", ["OneWorker", "SeveralWorkers"])
def test_our_executors_are_vllms_and_end_with_the_replica(name, monkeypatch):
    from vllm.config import ParallelConfig
    from vllm.v1.executor.abstract import Executor

    from evals.serving import executors

    config = SimpleNamespace(parallel_config=ParallelConfig())
    _compat.use_executor(config, f"evals.serving.executors.{name}")
    chosen, calls = Executor.get_class(config), []
    base = chosen.__mro__[1]
    assert chosen is getattr(executors, name) and base in _compat.executors()
    monkeypatch.setattr(executors, "end_with_parent", lambda: calls.append("end"))
    monkeypatch.setattr(base, "_init_executor", lambda self: calls.append("workers"))
    chosen(MagicMock())
    assert calls == ["end", "workers"]


def test_the_client_of_a_server_is_vllms():
    from vllm.v1.engine.async_llm import AsyncLLM

    server = SimpleNamespace(engine=SimpleNamespace(_engine_client="client"))
    assert _compat.vllm_client(server) == "client"
    for method in ("generate", "add_lora", "reset_prefix_cache", "collective_rpc"):
        assert callable(getattr(AsyncLLM, method))
    assert inspect.signature(AsyncLLM.reset_prefix_cache).return_annotation in (bool, "bool")


def test_packed_weights_follow_the_weights():
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 64, bias=False), torch.randn(2, 64)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
    with torch.no_grad():
        layer.weight.mul_(2)
        _compat.pack_cpu_weights(torch.nn.Sequential(layer))
        served = layer.cpu_linear(x, layer.weight, None)
        torch.testing.assert_close(served, torch.nn.functional.linear(x, layer.weight))


def test_workers_can_import_the_classes_that_are_named_in_strings():
    from ray._common.utils import import_attr
    from ray.llm._internal.serve.constants import RAYLLM_VLLM_ENGINE_CLS_ENV

    planned = plan(EngineSettings())
    engine = import_attr(planned.environment[RAYLLM_VLLM_ENGINE_CLS_ENV])
    assert issubclass(engine, _compat.ray_vllm_engine())
    assert callable(import_attr(planned.engine["worker_extension_cls"]).swap_weights)


def test_weights_are_swapped_in_the_workers_configuration(monkeypatch):
    """Loaders look it up, as those of quantized and expert layers do."""
    from vllm.config import get_current_vllm_config_or_none
    from vllm.v1.worker.gpu_worker import Worker

    from evals.serving import worker_extension

    seen = []

    def reload_weights(**arguments):
        seen.append((arguments, get_current_vllm_config_or_none()))

    class Extended(Worker, worker_extension.SwapWeights):
        def __init__(self):
            self.vllm_config = MagicMock()
            self.model_runner = SimpleNamespace(
                reload_weights=reload_weights, get_model=torch.nn.Module
            )

    worker = Extended()
    worker.swap_weights("here")
    assert seen == [({"weights_path": "here"}, worker.vllm_config)]


@pytest.mark.parametrize("module", ["evals._compat", "evals.serving.worker_extension"])
def test_worker_modules_import_nothing_heavy(module):
    script = f"import sys, {module}; print({{'ray', 'torch', 'vllm'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
