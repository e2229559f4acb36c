"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network
os.environ.setdefault("OTR_CACHE", "")  # each test tokenizes for itself
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices; threads would wait for each other
os.environ.setdefault("RAY_worker_niceness", "0")  # by default workers starve beside other tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests for `make test`, whose two processes take the next group in turn.

    Tests that start Ray or vLLM are one group, and the first: two such tests at once would be in
    each other's way, and later ones use what earlier ones started. Otherwise a file is a group.
    """
    items.sort(key=lambda item: item.get_closest_marker("integration") is None)
    for item in items:
        integration = item.get_closest_marker("integration") is not None
        group = "integration" if integration else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def benchmark_dir() -> Path:
    """The published benchmark files; a test that wants them skips where they are not."""
    directory = os.environ.get("OTR_BENCHMARKS")
    if not directory or not Path(directory).is_dir():
        pytest.skip("OTR_BENCHMARKS names no directory of published benchmark files")
    return Path(directory)
