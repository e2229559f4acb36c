"""Adapters that vLLM can serve, hints on its start-up errors, and the seeds of requests."""

import json
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from evals.benchmark import Decoding
from evals.serving import adapters, replicas
from evals.serving.deployment import root_error, start_failure_hint
from evals.serving.requests import Request, Response, ServedModel
from evals.settings import EngineSettings
from otr.models import lora

TOO_MUCH = (
    "ValueError: Available memory on node 0 (14.78/17.71 GiB) on kv cache allocation is less than "
    "requested memory for kv (1000.0 GiB). Decrease --kv-cache-memory-bytes"
)
TOO_LITTLE = (
    "ValueError: To serve at least one request with the model's max seq len (512), (0.0 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (0.0 GiB)."
)
LOG = f"""2026-11-25 22:51:47,709 21045 INFO vllm.config.model: Using max model len 512
Traceback (most recent call last):
  File "core.py", line 1360, in run_engine_core
{TOO_MUCH}
RuntimeError: Engine core initialization failed. See root cause above.
"""


def write_adapter(directory, **changes):
    directory.mkdir(parents=True)
    names = ["model.layers.0.self_attn.q_proj", "down_proj"]
    config = {"peft_type": "LORA", "r": 8, "target_modules": names} | changes
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_engine_has_slots_for_all_adapters_and_an_empty_one(tmp_path):
    paths = [write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", r=20)]
    named = adapters.check_all(paths, tmp_path)
    assert list(named.values()) == paths
    assert adapters.engine_arguments(named.values()) == {
        "enable_lora": True,
        "max_loras": 3,
        "max_lora_rank": 32,
        "lora_target_modules": ["down_proj", "q_proj"],
    }
    assert adapters.engine_arguments([]) == {}


def test_ranks_are_those_of_the_installed_vllm():
    from vllm.config.lora import MaxLoRARanks

    assert set(adapters.RANKS) == set(get_args(MaxLoRARanks))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True; merge it instead"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"r": 1024}, "rank 1024 exceeds 512"),
        ({"target_modules": ["lm_head"]}, "changes the head"),
        ({"target_modules": ".*proj"}, "pattern '.*proj'"),
    ],
)
def test_adapters_that_vllm_would_apply_in_part_are_rejected(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        adapters.check_all([write_adapter(tmp_path / "a", **changes)], tmp_path)


def test_an_adapter_of_a_quantized_base_model_is_rejected(tmp_path):
    path, kept = write_adapter(tmp_path / "a"), tmp_path / "a" / "adapter_model.safetensors"
    tensors = {"a": torch.ones(1)}
    save_file(tensors, kept, metadata={"format": "pt", adapters.QUANTIZED: "nf4"})
    with pytest.raises(ValueError, match="base model quantized to nf4; merge it instead"):
        adapters.check_all([path], tmp_path)
    save_file(tensors, kept, metadata={"format": "pt"})
    assert [*adapters.check_all([path], tmp_path).values()] == [path]
    assert adapters.QUANTIZED == lora.QUANTIZED, "what otr writes"


def test_rslora_is_served_with_its_own_scale(tmp_path):
    from vllm.lora.peft_helper import PEFTHelper

    path = write_adapter(tmp_path / "a", r=16, lora_alpha=32, use_rslora=True)
    adapters.check_all([path], tmp_path)
    assert PEFTHelper.from_local_dir(str(path), None).vllm_lora_scaling_factor == 32 / 4


def test_adapters_of_another_model_and_other_directories_are_rejected(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    stray = write_adapter(tmp_path / "a", base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=f"belongs to {other}"):
        adapters.check_all([stray], tmp_path / "model")
    with pytest.raises(ValueError, match="not a LoRA adapter"):
        adapters.check_all([other], tmp_path)


def test_hints_on_memory_errors_name_the_setting():
    settings = EngineSettings(kv_cache_gib=3, max_model_len=1024)
    assert root_error(LOG) == TOO_MUCH
    assert (
        "lower --engine.kv-cache-gib (now 3), --engine.max-model-len (now 1024)"
        in start_failure_hint(TOO_MUCH, settings)
    )
    assert (
        "raise --engine.kv-cache-gib (now 3) or lower --engine.max-model-len"
        in start_failure_hint(TOO_LITTLE, settings)
    )
    assert root_error("INFO all is well\n") == start_failure_hint("", settings) == ""


def test_hints_on_a_gpu_that_another_process_uses():
    reason = "ValueError: Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than ..."
    hint = start_failure_hint(reason, EngineSettings(gpus=1))
    assert "another process uses the memory of the GPU; end it" in hint
    assert "--engine.gpus (now 1)" in hint


@pytest.mark.parametrize(("max_tokens", "expected"), [(8, 60), (1024, 60), (4096, 240)])
def test_long_answers_get_more_time(tmp_path, monkeypatch, max_tokens, expected):
    settings = EngineSettings("float32", 8192, num_replicas=2, concurrency=6)
    pool = replicas.Replicas(settings, tmp_path, {}, timeout_s=60)
    monkeypatch.setattr(pool, "_weights", dict.fromkeys(pool._weights, "loaded"))
    monkeypatch.setattr(replicas, "handle", lambda name: None)
    limits = []

    def respond(replicas, requests, options, limit):
        limits.append(limit)
        return [(key, Response("", "stop")) for key in requests]

    monkeypatch.setattr(replicas.client, "stream_responses", respond)
    list(pool.stream_responses({0: Request([1], 1), 1: Request([1], max_tokens)}, {}))
    assert [(one.timeout_s, one.in_flight) for one in limits] == [(expected, 3)]


class EchoesSeeds:
    """A backend whose responses are the seeds of the requests, in reverse order."""

    def stream_responses(self, requests, options):
        for key, request in reversed(requests.items()):
            yield key, Response(str(request.seed), "stop", [1])


def test_seeds_depend_on_the_key_and_the_sample_alone(tmp_path):
    model = ServedModel(EchoesSeeds(), EngineSettings(max_model_len=32), tmp_path)
    decoding = Decoding(max_tokens=4, num_samples=2, seed=3)
    [[a0, a1], [b0, b1]] = model.generate([[1], [2]], decoding, seeds=["a", "b"])
    assert len({a0.text, a1.text, b0.text, b1.text}) == 4
    assert model.generate([[2], [1]], decoding, seeds=["b", "a"]) == [[b0, b1], [a0, a1]]
    seen = []
    rest = model.generate(
        [[1], [2]],
        decoding,
        seeds=["a", "b"],
        skip={(0, 1)},
        on_completion=lambda *one: seen.append(one),
    )
    assert rest == [[a0, None], [b0, b1]]
    assert seen == [((1, 1), b1), ((1, 0), b0), ((0, 0), a0)]
