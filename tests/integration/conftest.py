"""Fixtures of integration tests: a Ray cluster per module; models and settings for the engine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.assets.tiny import make_tiny_model


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs on this machine, or the cluster at RAY_ADDRESS."""
    import ray

    from pipelines import _compat

    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="ERROR")
    else:
        _compat.start_ray(num_cpus=4, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Path]:
    """Random models of one architecture."""
    folder = tmp_path_factory.mktemp("models")
    return [make_tiny_model(folder / f"seed{seed}", seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def engine_settings(tmp_path_factory):
    """Settings of a small engine on a free port, with its logs in a temporary directory."""
    from evals.settings import EngineSettings, free_port

    return EngineSettings(
        dtype="float32",
        threads=1,
        max_model_len=512,
        kv_cache_gib=0.25,
        port=free_port(),
        log_dir=str(tmp_path_factory.mktemp("logs")),
    )
