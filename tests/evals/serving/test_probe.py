"""The probe: accepted and rejected log-probabilities, and its error messages. Replica counts."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from evals.serving import deployment, probe
from evals.settings import EngineSettings, free_port
from tests.assets.tiny import make_tiny_model


def served_by(
    directory: Path, rows: list[list[int]], dtype: str = "float32", *, tf32: str = "", **scale
) -> list[list[float]]:
    """Compute log-probs as an engine would: weights and activations in `dtype`, other kernels.

    Args:
        directory: a model directory.
        rows: token sequences.
        dtype: data type.
        tf32: "rounded" or "truncated" inputs of attention's products to 10 bits, as of TF32;
            Triton's kernels truncate.
        scale: factors of the down projections, `layer_0=1.5`.
    """

    def rounded(x: torch.Tensor) -> torch.Tensor:
        if not tf32:
            return x
        bits = x.contiguous().view(torch.int32) + (0x1000 if tf32 == "rounded" else 0)
        return (bits & ~0x1FFF).view(torch.float32)

    def attention(module, query, key, value, attention_mask, *, scaling, **more):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = rounded(query) @ rounded(key).transpose(2, 3) * scaling
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return (rounded(weights) @ rounded(value)).transpose(1, 2), None

    AttentionInterface.register("engine", attention)
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="engine"
    ).eval()
    with torch.no_grad():
        for layer, factor in scale.items():
            model.model.layers[int(layer[-1])].mlp.down_proj.weight.mul_(factor)
    return [probe._logprobs(model, row) for row in rows]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(model) -> list[list[int]]:
    return probe.sequences(model, 256)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_other_kernels_are_accepted_and_other_weights_are_not(model, rows, dtype, tmp_path):
    expected = probe.reference(model, rows, dtype)
    found = probe.check_logprobs(served_by(model, rows, dtype), expected, dtype, "it")
    assert found.mean <= expected.allowed(dtype).mean
    scaled = served_by(model, rows, dtype, layer_1=1.001 if dtype == "float32" else 1.5)
    other = served_by(make_tiny_model(tmp_path, seed=1), rows, dtype)
    for wrong in (scaled, other):
        with pytest.raises(probe.NotServedError, match="does not serve it"):
            probe.check_logprobs(wrong, expected, dtype, "it")


def test_the_tolerance_is_that_of_the_model(model, rows):
    """A difference that rounding explains in one model is a fault in a more exact one."""
    expected = probe.reference(model, rows, "bfloat16")
    shifted = [[value + 1.9 * expected.rounding.mean for value in r] for r in expected.logprobs]
    probe.check_logprobs(shifted, expected, "bfloat16", "it")
    half = replace(expected, rounding=probe.Difference(*(x / 2 for x in expected.rounding)))
    with pytest.raises(probe.NotServedError, match="on average"):
        probe.check_logprobs(shifted, half, "bfloat16", "it")


@pytest.mark.parametrize("tf32", ["rounded", "truncated"])
def test_float32_by_tf32_is_refused_with_the_remedy(model, rows, tf32):
    """Its scores would be stored as float32's, but are not those of another machine's."""
    expected = probe.reference(model, rows, "float32")
    with pytest.raises(probe.NotServedError, match=r"TRITON_F32_DEFAULT=ieee .* bfloat16; not"):
        probe.check_logprobs(served_by(model, rows, tf32=tf32), expected, "float32", "it")
    with pytest.raises(probe.NotServedError) as error:
        probe.check_logprobs(served_by(model, rows, layer_1=2.0), expected, "float32", "it")
    assert "TRITON" not in str(error.value)


def test_missing_values_and_an_overflow_are_refused():
    exact = probe.Difference(0.1, 0.01)
    for served, true in ((math.nan, -1.0), (-1.0, math.nan), (-math.inf, -1.0)):
        with pytest.raises(probe.NotServedError, match="does not serve it"):
            probe.check_logprobs([[served]], probe.Reference([[true]], exact), "float16", "it")
    with pytest.raises(probe.NotServedError, match="instead of"):
        probe.check_logprobs([[-1.0]], probe.Reference([[-1.0, -2.0]], exact), "float32", "it")
    overflow = probe.Reference([[-1.0]], probe.Difference(math.inf, math.inf))
    with pytest.raises(probe.NotServedError, match=r"overflows in float16: give --engine\.dtype"):
        probe.check_logprobs([[-1.0]], overflow, "float16", "it")


def test_a_host_with_too_little_memory_is_named_before_the_model_is_read(model, rows, monkeypatch):
    (weights,) = model.glob("*.safetensors")
    free = SimpleNamespace(available=weights.stat().st_size // 2)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(RuntimeError, match=r"needs 0 GiB of memory on \S+, and 0 GiB are free"):
        probe.reference(model, rows, "float32")


def test_reference_is_a_distribution_over_next_tokens(model):
    rows = [[5, 6, token] for token in range(259)]
    last = [values[-1] for values in probe.reference(model, rows, "float32").logprobs]
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
        ("kv_cache_gib", -1),
        ("threads", -1),
        ("port", 0),
        ("gpus", -1),
    ],
)
def test_invalid_settings_are_rejected(field, value):
    with pytest.raises(ValueError, match=f"{field}.*{value}"):
        EngineSettings(**{field: value})


@pytest.mark.parametrize(
    ("num_replicas", "gpus", "free", "expected"),
    [
        (0, 1, {"CPU": 64, "GPU": 5.5}, 5),
        (0, 0.5, {"CPU": 64, "GPU": 2}, 4),
        (0, 0.6, {"CPU": 64, "GPU": 6}, 6),  # no two on a GPU
        (0, 0.1, {"CPU": 99, "GPU": 6}, 60),  # 6 // 0.1 is 59 in floating point
        (0, 1, {"CPU": 3, "GPU": 8}, 3),
        (0, 2, {"CPU": 64, "GPU": 6}, 2),  # on two nodes with 3 each
        (0, 4, {"CPU": 64, "GPU": 6}, 1),  # check_can_start then says that no node has 4
        (0, 1, {"CPU": 64}, 1),  # check_can_start then names the missing GPU
        (0, 0, {"CPU": 64}, 1),
        (2, 1, {"CPU": 64, "GPU": 8}, 2),
    ],
)
def test_there_are_as_many_replicas_as_free_gpus(monkeypatch, num_replicas, gpus, free, expected):
    monkeypatch.setattr(deployment, "GPU_RELEASE_S", 0)
    monkeypatch.setattr(deployment.ray, "available_resources", lambda: free)
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: {"GPU": 8.0})
    node = {"Alive": True, "Resources": {"GPU": 3.0}}
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [node, node])
    settings = EngineSettings(num_replicas=num_replicas, gpus=gpus)
    assert deployment.with_num_replicas(settings).num_replicas == expected


@pytest.mark.parametrize(
    ("num_replicas", "gpus", "places"), [(2, 4, 1), (1, 8, 0), (3, 0.6, 2), (2, 0.6, None)]
)
def test_replicas_that_no_nodes_have_room_for_are_refused(
    monkeypatch, num_replicas, gpus, places
) -> None:
    """Serve would wait for ever."""
    nodes = [{"Alive": True, "Resources": {"GPU": n}} for n in ([1, 1] if gpus < 1 else [4, 2, 2])]
    total = {"CPU": 64, "GPU": sum(node["Resources"]["GPU"] for node in nodes)}
    monkeypatch.setattr(deployment.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(deployment.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: total)
    monkeypatch.setattr(deployment.serve, "status", lambda: SimpleNamespace(proxies={}))
    monkeypatch.setattr("evals.hardware._is_installed", lambda name: name == "vllm")
    settings = EngineSettings(
        max_model_len=99, num_replicas=num_replicas, gpus=gpus, port=free_port()
    )
    if places is None:
        deployment.check_can_start(settings)
        return
    with pytest.raises(ValueError, match=f"{num_replicas} replicas with .* have room for {places}"):
        deployment.check_can_start(settings)


def test_replicas_wait_for_the_gpus_of_trials_that_have_just_ended(monkeypatch):
    free = iter([{"CPU": 9.0}, {"CPU": 9.0, "GPU": 1.0}, {"CPU": 9.0, "GPU": 2.0}])
    monkeypatch.setattr(deployment.ray, "available_resources", lambda: next(free))
    monkeypatch.setattr(deployment.ray, "cluster_resources", lambda: {"GPU": 2.0})
    monkeypatch.setattr(
        deployment.ray, "nodes", lambda: [{"Alive": True, "Resources": {"GPU": 2.0}}]
    )
    assert deployment.with_num_replicas(EngineSettings(gpus=1)).num_replicas == 2
