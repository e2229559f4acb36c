"""The engine as it runs on GPUs: two that Ray believes in, one model on both, vLLM on the CPU.

All is real but the devices: what a replica reserves, its processes, how they end with it and how it
recovers.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
import ray

from evals import hardware
from evals.benchmark import Decoding
from evals.serving import replicas
from evals.serving.engine import Engine
from pipelines import _compat

pytestmark = pytest.mark.integration

TEXT = list(b"Half of the heads are computed by one worker, the others by the other. " * 2)
PROMPTS = [TEXT[: 20 + n] for n in range(20)]
SAMPLED = Decoding(max_tokens=100, temperature=1.0, num_samples=2, seed=7)


@pytest.fixture(scope="module")
def engine(checkpoints, engine_settings) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        # As on the CPU: on GPUs, the engine compiles.
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setattr(hardware, "_is_installed", lambda package: package == "vllm")
        _compat.start_ray(num_cpus=4, num_gpus=2, log_to_driver=False)
        try:
            settings = replace(engine_settings, gpus=2)
            with Engine.start(checkpoints[0], settings=settings) as running:
                running.swap(checkpoints[1])
                yield running
        finally:
            ray.shutdown()


def processes() -> list[psutil.Process]:
    """Return the replica's processes: the server, vLLM's engine, its two workers."""
    workers = replicas.handle("replica-0").collective_rpc.remote("end_with_server").result()
    first, second = map(psutil.Process, workers)
    core = first.parent()
    assert core is not None and core == second.parent()
    server = core.parent()
    assert server is not None and "ServeReplica" in server.cmdline()[0]
    return [server, core, first, second]


def test_the_replica_reserves_its_gpus_and_its_processes_see_no_others(engine):
    assert ray.available_resources().get("GPU", 0) == 0
    assert {p.environ()["CUDA_VISIBLE_DEVICES"] for p in processes()[1:]} == {"0,1"}
    assert engine.settings.num_replicas == 1, "both GPUs are one replica's"


@pytest.mark.parametrize(
    "victim",
    [pytest.param(0, id="server"), pytest.param(2, id="worker", marks=pytest.mark.faults)],
)
def test_whatever_dies_the_others_end_and_the_replica_recovers(engine, victim):
    before, given = processes(), []
    undisturbed = engine.generate(PROMPTS, SAMPLED)

    def count(key, completion):
        given.append(key)
        if len(given) == 5:
            os.kill(before[victim].pid, 9)

    assert engine.generate(PROMPTS, SAMPLED, on_completion=count) == undisturbed
    _, alive = psutil.wait_procs(before, timeout=30)
    assert not alive, "their memory on the GPUs would stay taken"
    assert not {p.pid for p in processes()} & {p.pid for p in before}
