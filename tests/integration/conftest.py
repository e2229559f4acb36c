"""A Ray that the integration tests of a module share."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs on this machine, or the cluster at RAY_ADDRESS."""
    import ray

    here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": 4}
    ray.init(**here, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
