"""The engine on real parts: Ray Serve, vLLM, a tiny random Qwen3 with tied embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from evals import tasks
from evals.benchmark import Decoding
from evals.engine import Engine, EngineSettings
from evals.score import score
from tests.assets.newcomer import free_port
from tests.assets.tiny import make_tiny_model

pytestmark = pytest.mark.integration

TEXT = list(b"Every swap is proven before anything may be generated. " * 4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_model(folder / f"seed{seed}", seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def started(checkpoints, tmp_path_factory):
    settings = EngineSettings(
        max_model_len=512,
        kv_cache_gib=0.25,
        port=free_port(),
        log_dir=str(tmp_path_factory.mktemp("logs")),
    )
    ray.init(address="local", num_cpus=2, log_to_driver=False)
    try:
        with Engine.start(checkpoints[0], settings=settings) as running:
            yield running
    finally:
        ray.shutdown()


@pytest.fixture
def engine(started, checkpoints):
    """The one engine, whatever the test before left it in, serving checkpoint 1."""
    started.swap(checkpoints[1])
    return started


def truth(directory: Path, ids: list[int]) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    row = torch.tensor([ids])
    with torch.no_grad():
        logp = model(row).logits[0].log_softmax(-1)
    return [logp[t - 1, ids[t]].item() for t in range(1, len(ids))]


def test_base_and_three_swaps_give_transformers_logprobs(started, checkpoints):
    assert started.model_dir == checkpoints[0]
    previous = None
    for number, directory in enumerate(checkpoints):
        if number:
            started.swap(directory)
        served = started.logprobs(TEXT)
        np.testing.assert_allclose(served, truth(directory, TEXT), atol=1e-3)
        assert previous is None or np.abs(np.subtract(served, previous)).max() > 0.1
        previous = served


def test_reload_without_the_repair_is_caught(engine, checkpoints):
    for handle in engine._handles():
        handle.collective_rpc.remote(
            "reload_weights", kwargs={"weights_path": str(checkpoints[2])}
        ).result()
        handle.reset_prefix_cache.remote().result()
    engine.model_dir = checkpoints[2]
    with pytest.raises(RuntimeError, match="does not serve"):
        engine._prove()


def test_stale_prefix_cache_is_caught_and_a_sound_swap_recovers(engine, checkpoints):
    engine._proven = False
    engine._call_workers("swap_weights", str(checkpoints[2]))
    engine.model_dir = checkpoints[2]
    with pytest.raises(RuntimeError, match="does not serve"):
        engine._prove()
    with pytest.raises(RuntimeError, match="unproven"):
        engine.generate([TEXT], Decoding(max_tokens=2))
    engine.swap(checkpoints[2])
    assert engine.generate([TEXT], Decoding(max_tokens=2))[0][0].num_tokens == 2


def test_other_shape_is_refused_by_name(engine, tmp_path):
    untied = make_tiny_model(tmp_path / "untied", tied=False)
    with pytest.raises(ValueError, match=r"tie_word_embeddings: True there, False here"):
        engine.swap(untied)


def test_answers_of_a_restarted_replica_are_refused(engine, checkpoints, monkeypatch):
    monkeypatch.setattr(engine, "model_dir", checkpoints[3])
    with pytest.raises(RuntimeError, match="restarted"):
        engine.generate([TEXT], Decoding(max_tokens=2))


def test_samples_have_seeds_of_their_own(engine):
    drawn = Decoding(max_tokens=16, temperature=1.0, num_samples=3, seed=5)
    first = engine.generate([TEXT[:20], TEXT[:20]], drawn)
    assert engine.generate([TEXT[:20], TEXT[:20]], drawn) == first
    assert len({completion.text for samples in first for completion in samples}) == 6


def test_stop_tokens_and_over_long_prompts(engine):
    greedy = Decoding(max_tokens=8)
    [[free]] = engine.generate([TEXT], greedy)
    assert (free.finish_reason, free.num_tokens) == ("length", 8)
    [[stopped]] = engine.generate([TEXT], greedy, stop_token_ids=range(256))
    assert (stopped.finish_reason, stopped.num_tokens) == ("stop", 1)
    [[too_long], [fits]] = engine.generate([[1] * 512, [1] * 510], greedy)
    assert (too_long.finish_reason, too_long.num_tokens) == ("prompt_too_long", 0)
    assert fits.num_tokens <= 2


def test_second_serve_is_refused_before_it_starts(engine, checkpoints):
    with pytest.raises(ValueError, match="already runs"):
        Engine.start(checkpoints[0], settings=engine.settings)


def test_score_of_a_file_benchmark_is_stored_and_reused(engine, checkpoints, tmp_path):
    questions = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"{i} + {i} = ?", "answer": str(2 * i), "grader": "math"} for i in range(6)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmark = tasks.load(f"file:{questions}", None)
    results = tmp_path / "results"

    asked = (lambda: engine, engine.settings, checkpoints[3], [benchmark])
    [first] = score(*asked, results_dir=results)
    assert engine.model_dir == checkpoints[3]
    assert first.num_examples == 6
    assert 0 <= first.low <= first.value <= first.high <= 1
    stored = [json.loads(line) for line in (results / "sums.jsonl").read_text().splitlines()]
    assert stored[2]["rendered"] == "<|im_start|>user\n2 + 2 = ?<|im_end|>\n<|im_start|>assistant\n"
    assert stored[2]["samples"][0]["num_tokens"] > 0

    engine.swap(checkpoints[0])
    assert score(*asked, results_dir=results) == [first]
    assert engine.model_dir == checkpoints[0]
