"""The probe: accepted and rejected log-probabilities, and its error messages. Replica counts."""

import math

import pytest

from evals.serving import deployment, probe
from evals.settings import EngineSettings
from tests.assets.tiny import make_tiny_model


def test_small_differences_pass_and_large_or_missing_ones_fail():
    right = [-1.0] * 99
    assert probe.check_logprobs([[*right, -1.0005]], [[*right, -1.0]], "float32", "it") < 1e-3
    for served, true in ((-1.002, -1.0), (math.nan, -1.0), (-1.0, math.nan)):
        with pytest.raises(RuntimeError, match="does not serve it"):
            probe.check_logprobs([[served]], [[true]], "float32", "it")
    with pytest.raises(RuntimeError, match="instead of"):
        probe.check_logprobs([[-1.0]], [[-1.0, -2.0]], "float32", "it")


def test_in_bfloat16_rounding_passes_and_a_nearby_checkpoint_fails():
    true = [-1.0] * 100
    rounded = [*true[1:], -1.6]
    assert probe.check_logprobs([rounded], [true], "bfloat16", "it") == pytest.approx(0.6)
    with pytest.raises(RuntimeError, match=r"on average 0\.2 nats"):
        probe.check_logprobs([[-1.2] * 100], [true], "bfloat16", "it")


def test_reference_is_a_distribution_over_next_tokens(tmp_path):
    model = make_tiny_model(tmp_path)
    rows = [[5, 6, token] for token in range(259)]
    last = [values[-1] for values in probe.reference_logprobs(model, rows)]
    assert math.fsum(map(math.exp, last)) == pytest.approx(1, abs=1e-5)


def test_long_sequence_exceeds_a_cache_block_and_fits_the_model(tmp_path):
    model = make_tiny_model(tmp_path)
    assert max(map(len, probe.sequences(model, 1024))) > 128
    assert max(map(len, probe.sequences(model, 64))) + probe.NUM_CONTINUATION_TOKENS <= 64


def test_errors_of_directory_and_architecture_name_the_cause(tmp_path):
    tied, untied = make_tiny_model(tmp_path / "a"), make_tiny_model(tmp_path / "b", tied=False)
    probe.check_same_architecture(tied, make_tiny_model(tmp_path / "c", seed=1))
    with pytest.raises(ValueError, match="tie_word_embeddings: True there, False here"):
        probe.check_same_architecture(tied, untied)
    (tied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*.safetensors"):
        probe.check_directory(tied)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int8"),
        ("num_replicas", -1),
        ("max_model_len", 8),
        ("kv_cache_gib", 0),
        ("gpus", -1),
    ],
)
def test_invalid_settings_are_rejected(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        EngineSettings(**{field: value})


@pytest.mark.parametrize(
    ("num_replicas", "gpus", "free", "expected"),
    [
        (0, 1, {"CPU": 64, "GPU": 7.5}, 7),
        (0, 0.5, {"CPU": 64, "GPU": 2}, 4),
        (0, 1, {"CPU": 3, "GPU": 8}, 3),
        (0, 1, {"CPU": 64}, 1),  # check_can_start then names the missing GPU
        (0, 0, {"CPU": 64}, 1),
        (2, 1, {"CPU": 64, "GPU": 8}, 2),
    ],
)
def test_there_are_as_many_replicas_as_free_gpus(monkeypatch, num_replicas, gpus, free, expected):
    monkeypatch.setattr(deployment, "GPU_RELEASE_S", 0)
    monkeypatch.setattr(deployment.ray, "available_resources", lambda: free)
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: {"GPU": 8.0})
    settings = EngineSettings(num_replicas=num_replicas, gpus=gpus)
    assert deployment.with_num_replicas(settings).num_replicas == expected


def test_replicas_wait_for_the_gpus_of_trials_that_have_just_ended(monkeypatch):
    free = iter([{"CPU": 9.0}, {"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 2.0}])
    monkeypatch.setattr(deployment.ray, "available_resources", lambda: next(free))
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: {"GPU": 2.0})
    assert deployment.with_num_replicas(EngineSettings(gpus=1)).num_replicas == 2
