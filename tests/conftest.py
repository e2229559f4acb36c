"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network
os.environ.setdefault("OTR_CACHE", "")  # each test tokenizes for itself
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices; threads would wait for each other


@pytest.fixture(scope="session")
def benchmark_dir() -> Path:
    """The published benchmark files; a test that wants them skips where they are not."""
    directory = os.environ.get("OTR_BENCHMARKS")
    if not directory or not Path(directory).is_dir():
        pytest.skip("OTR_BENCHMARKS names no directory of published benchmark files")
    return Path(directory)
