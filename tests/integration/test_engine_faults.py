"""Faults that the engine survives (processes killed or frozen), and its hint on memory."""

import os
import signal
from dataclasses import replace

import psutil
import pytest

from evals.benchmark import Decoding
from evals.serving import client, replicas
from evals.serving.engine import Engine

pytestmark = pytest.mark.integration

TEXT = list(b"Finished answers are stored, and only the others are generated again. " * 2)
PROMPTS = [TEXT[: 20 + n] for n in range(40)]
SAMPLED = Decoding(max_tokens=200, temperature=1.0, num_samples=2, seed=7)


def test_a_cache_beyond_memory_names_the_setting(checkpoints, engine_settings, ray_cluster):
    too_large = replace(engine_settings, kv_cache_gib=9000)
    with pytest.raises(
        RuntimeError, match=r"lower --engine.kv-cache-gib \(now 9000\), --engine.max-model-len"
    ):
        Engine.start(checkpoints[0], settings=too_large)


@pytest.fixture(scope="module")
def engine(checkpoints, engine_settings, ray_cluster):
    with Engine.start(checkpoints[0], settings=engine_settings) as running:
        running.swap(checkpoints[1])  # a restarted replica would serve checkpoint 0
        yield running


@pytest.fixture(scope="module")
def undisturbed(engine):
    return engine.generate(PROMPTS, SAMPLED)


def engine_process() -> psutil.Process:
    """Return vLLM's process, a child of the only replica."""
    [pid] = replicas.handle("replica-0").collective_rpc.remote("end_with_server").result()
    return psutil.Process(pid)


def interrupted(engine: Engine, process: psutil.Process, number: signal.Signals):
    """Generate, and send a signal to `process` after ten completions; also return their keys."""
    given = []

    def count(key, completion):
        given.append(key)
        if len(given) == 10:
            os.kill(process.pid, number)

    return engine.generate(PROMPTS, SAMPLED, on_completion=count), given


@pytest.mark.parametrize(
    ("number", "whose"),
    [
        (signal.SIGKILL, "engine"),
        (signal.SIGSTOP, "engine"),
        (signal.SIGSTOP, "replica"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_interruptions_do_not_change_the_answers(engine, undisturbed, number, whose, monkeypatch):
    monkeypatch.setattr(client, "SILENCE_S", 5.0)
    if number == signal.SIGSTOP:
        monkeypatch.setattr(engine._replicas, "_timeout_s", 10.0)
    inner = engine_process()
    process = inner if whose == "engine" else inner.parent()
    answers, given = interrupted(engine, process, number)
    assert answers == undisturbed
    assert len(given) == len(set(given)) == 2 * len(PROMPTS)
    assert engine_process().pid != inner.pid
    # The old engine's memory is free again.
    psutil.wait_procs([inner], timeout=30)
    assert not inner.is_running()


def test_a_swap_restarts_a_replica_that_died_between_calls(engine, undisturbed):
    engine_process().parent().kill()
    engine.swap(engine.model_dir)
    assert engine.generate(PROMPTS, SAMPLED) == undisturbed
