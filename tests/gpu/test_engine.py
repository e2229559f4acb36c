"""The engine on a GPU: what it serves is what transformers computes, in each data type; half a GPU.

Needs Ray and vLLM, unlike the other tests of this directory.
"""

from pathlib import Path

import pytest
import torch

from evals.benchmark import Decoding
from evals.settings import EngineSettings, free_port
from tests.assets.tiny import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize(("dtype", "gpus"), [("float32", 1), ("bfloat16", 0.5)])
def test_a_model_is_served_swapped_and_verified(dtype: str, gpus: float, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("vllm")
    from evals.serving.engine import Engine

    models = [make_tiny_model(tmp_path / f"{seed}", seed=seed) for seed in range(2)]
    settings = EngineSettings(
        dtype,
        max_model_len=512,
        num_replicas=1,
        gpus=gpus,
        port=free_port(),
        log_dir=str(tmp_path / "logs"),
    )
    ray.init(address="local", log_to_driver=False)
    try:
        with Engine.start(models[0], settings=settings) as engine:
            engine.swap(models[1])  # raises if the engine serves something else
            [[answer]] = engine.generate([list(b"Is it a GPU? ")], Decoding(max_tokens=8))
            assert answer.num_tokens > 0
    finally:
        ray.shutdown()
