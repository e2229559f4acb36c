"""The real engine: Ray Serve and vLLM on tiny random Qwen3 models with tied embeddings; LoRA."""

import gc
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ray.serve._private.long_poll import LongPollClient
from transformers import AutoModelForCausalLM

from evals import tasks
from evals.benchmark import Decoding
from evals.score import score
from evals.serving import client, deployment, probe, replicas
from evals.serving.engine import Engine
from evals.serving.requests import Request
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration

TEXT = list(b"Every swap is verified before anything may be generated. " * 4)
PROMPTS = [TEXT[: 60 + n] for n in range(48)]
SAMPLED = Decoding(max_tokens=24, temperature=1.0, num_samples=2, seed=5)
GREEDY = Decoding(max_tokens=24)


@pytest.fixture(scope="module")
def adapters(checkpoints, tmp_path_factory) -> list[Path]:
    """Random adapters of checkpoint 0, of three ranks."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, rank in enumerate((4, 8, 16)):
        torch.manual_seed(number)
        config = LoraConfig(
            r=rank, lora_alpha=32, target_modules="all-linear", init_lora_weights=False
        )
        get_peft_model(load(checkpoints[0]), config).save_pretrained(folder / str(rank))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def started(checkpoints, adapters, engine_settings, ray_cluster):
    with Engine.start(checkpoints[0], settings=engine_settings, adapter_dirs=adapters) as running:
        yield running


@pytest.fixture
def engine(started, checkpoints):
    """The module's engine, serving checkpoint 1 whatever the test before did."""
    started.swap(checkpoints[1])
    return started


def load(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def reference_logprobs(directory: Path, ids: list[int]) -> list[float]:
    with torch.no_grad():
        logp = load(directory)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logp[t - 1, ids[t]].item() for t in range(1, len(ids))]


def texts(answers) -> list[list[str]]:
    return [[completion.text for completion in samples] for samples in answers]


def test_base_and_three_swaps_give_transformers_logprobs(started, checkpoints):
    assert started.model_dir == checkpoints[0]
    previous = None
    for number, directory in enumerate(checkpoints):
        if number:
            started.swap(directory)
        served = started.logprobs(TEXT)
        np.testing.assert_allclose(served, reference_logprobs(directory, TEXT), atol=1e-3)
        assert previous is None or np.abs(np.subtract(served, previous)).max() > 0.1
        previous = served


@pytest.mark.parametrize("method", ["reload_weights", "swap_weights"])
def test_half_a_swap_is_detected(engine, checkpoints, method, monkeypatch):
    """First without packing the output head again, then without resetting the prefix cache."""
    handle = replicas.handle("replica-0")
    named = {"reload_weights": "weights_path", "swap_weights": "path"}[method]
    handle.collective_rpc.remote(method, kwargs={named: str(checkpoints[2])}).result()
    if method == "reload_weights":
        handle.reset_prefix_cache.remote().result()
    fleet = engine._replicas
    monkeypatch.setattr(fleet, "_model_dir", checkpoints[2])
    with pytest.raises(RuntimeError, match="does not serve"):
        fleet._verify(fleet._verified()[0])


def test_nothing_is_generated_after_a_failed_verification_until_a_valid_swap(
    engine, checkpoints, monkeypatch
):
    original = probe.reference
    with monkeypatch.context() as patch:
        patch.setattr(probe, "reference", lambda path, *more: original(checkpoints[3], *more))
        with pytest.raises(RuntimeError, match="does not serve"):
            engine.swap(checkpoints[2])
    with pytest.raises(RuntimeError, match="not verified"):
        engine.generate([TEXT], GREEDY)
    engine.swap(checkpoints[2])
    assert engine.generate([TEXT], GREEDY)[0][0].num_tokens > 0


def test_another_architecture_is_rejected_with_the_config_keys(engine, tmp_path):
    untied = make_tiny_model(tmp_path / "untied", tied=False)
    with pytest.raises(ValueError, match=r"tie_word_embeddings: True there, False here"):
        engine.swap(untied)


def test_a_replica_with_other_weights_does_not_respond(engine):
    [replica] = engine._replicas._verified()
    stale = replace(replica, weights="id before a restart")
    with pytest.raises(client.ReplicasLostError, match="it serves"):
        list(client.stream_responses([stale], {0: Request(TEXT, 2)}, {}, client.Limits(60, 1)))


@pytest.mark.parametrize("decoding", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_texts_depend_neither_on_order_nor_on_concurrency(engine, decoding, monkeypatch):
    keys = [f"item {number}" for number in range(len(PROMPTS))]
    first = engine.generate(PROMPTS, decoding, seeds=keys)
    shuffled = engine.generate(PROMPTS[::-1], decoding, seeds=keys[::-1])
    monkeypatch.setattr(engine._replicas, "_settings", replace(engine.settings, concurrency=1))
    alone = engine.generate(PROMPTS[:12], decoding, seeds=keys[:12])
    assert shuffled[::-1] == first
    assert alone == first[:12]
    if decoding.num_samples > 1:
        assert len({text for samples in texts(first) for text in samples}) == 2 * len(PROMPTS)


def test_completions_are_reported_as_they_arrive_except_skipped_ones(engine):
    got = {}
    skip = {(0, 1), (2, 0)}
    answers = engine.generate(
        [*PROMPTS[:3], [1] * 512], SAMPLED, skip=skip, on_completion=lambda k, c: got.update({k: c})
    )
    all_keys = {(index, sample) for index in range(4) for sample in range(2)}
    assert set(got) == all_keys - skip
    for index, sample in all_keys:
        assert answers[index][sample] == got.get((index, sample))
    assert got[3, 0].finish_reason == "prompt_too_long"


def test_stop_tokens_and_over_long_prompts(engine):
    greedy = Decoding(max_tokens=8)
    [[full]] = engine.generate([TEXT], greedy)
    assert (full.finish_reason, full.num_tokens) == ("length", 8)
    [[stopped]] = engine.generate([TEXT], greedy, stop_token_ids=range(256))
    assert (stopped.finish_reason, stopped.num_tokens) == ("stop", 1)
    [[too_long], [fits]] = engine.generate([[1] * 512, [1] * 510], greedy)
    assert (too_long.finish_reason, too_long.num_tokens) == ("prompt_too_long", 0)
    assert fits.num_tokens <= 2


def test_seeded_prompts_beyond_one_step_of_the_engine(engine):
    """A step has 2048 tokens; on the CPU, the engine would die of a prompt split into chunks."""
    long = [[number % 256] * 500 for number in range(12)]
    assert len(texts(engine.generate(long, SAMPLED))) == 12


def test_openai_endpoint_generates_the_same_text(engine):
    [[completion]] = engine.generate([TEXT], GREEDY)
    body = {"model": "replica-0", "prompt": TEXT, "max_tokens": 24, "temperature": 0.0}
    request = urllib.request.Request(
        f"{engine.url}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        [choice] = json.load(response)["choices"]
    assert choice["text"] == completion.text


def test_adapters_side_by_side_equal_merged_models(started, checkpoints, adapters, tmp_path):
    started.swap(checkpoints[0])
    served = [started, *(started.adapter(path) for path in adapters)]
    with ThreadPoolExecutor() as pool:  # so that batches mix requests of all of them
        together = list(pool.map(lambda one: texts(one.generate(PROMPTS, GREEDY)), served))
    for path, answers in zip(adapters, together[1:], strict=True):
        merged = PeftModel.from_pretrained(load(checkpoints[0]), path).merge_and_unload()
        merged.save_pretrained(tmp_path / path.name)
        started.swap(tmp_path / path.name)
        assert texts(started.generate(PROMPTS, GREEDY)) == answers
    with pytest.raises(ValueError, match="swap to that one first"):
        started.adapter(adapters[0])
    with pytest.raises(RuntimeError, match="its base model has been swapped"):
        served[1].generate(PROMPTS[:1], GREEDY)
    started.swap(checkpoints[0])
    assert texts(started.generate(PROMPTS, GREEDY)) == together[0]
    assert texts(started.adapter(adapters[2]).generate(PROMPTS, GREEDY)) == together[3]


def test_adapters_served_under_each_others_names_are_detected(engine, checkpoints, adapters):
    engine.swap(checkpoints[0])
    [replica] = engine._replicas._verified()
    swapped = dict(zip(engine._adapters, [adapters[1], adapters[0], adapters[2]], strict=True))
    fleet = engine._replicas
    correct, fleet._adapters = fleet._adapters, swapped
    with pytest.raises(RuntimeError, match=f"does not serve {adapters[1]}"):
        fleet._verify(replica)
    fleet._adapters = correct
    fleet._verify(replica)


def test_an_engine_does_not_start_beside_another_serve(engine, checkpoints):
    with pytest.raises(ValueError, match="already runs"):
        Engine.start(checkpoints[0], settings=engine.settings)


def test_score_of_a_file_benchmark_is_stored_and_reused(engine, checkpoints, tmp_path):
    questions = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} + {i} = ?", "answer": str(2 * i), "grader": "math"} for i in range(6)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = tasks.load(f"file:{questions}", None)
    arguments = (lambda: engine, engine.settings, checkpoints[3], [benchmark])
    [first] = score(*arguments, results_dir=tmp_path / "results")
    assert engine.model_dir == checkpoints[3]
    assert first.num_examples == 6
    assert 0 <= first.low <= first.value <= first.high <= 1

    engine.swap(checkpoints[0])
    assert score(*arguments, results_dir=tmp_path / "results") == [first]
    assert engine.model_dir == checkpoints[0]


def test_serve_requests_no_updates_when_it_ends(started, monkeypatch):
    """The last test of the module, because it ends the engine."""
    running, end = [], deployment.serve.shutdown

    def shutdown():
        clients = [one for one in gc.get_objects() if isinstance(one, LongPollClient)]
        running.extend(one.is_running for one in clients)
        end()

    monkeypatch.setattr(deployment.serve, "shutdown", shutdown)
    started.stop()
    assert running and not any(running)
