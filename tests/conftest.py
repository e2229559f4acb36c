"""Fixtures that more than one test file uses."""

import os
from pathlib import Path
from typing import Any

import pytest

STARTING = "tests/integration/"
"""Where the tests are that start Ray or vLLM."""

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network
os.environ.setdefault("OTR_CACHE", "")  # each test tokenizes for itself
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices; threads would wait for each other
os.environ.setdefault("RAY_worker_niceness", "0")  # by default workers starve beside other tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start Ray or vLLM first: they take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(STARTING))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one process run the tests that start Ray or vLLM, and the other one take file by file.

    Two of those at once would be in each other's way, and later ones use what earlier ones started.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return STARTING if nodeid.startswith(STARTING) else nodeid.partition("::")[0]

    return Scheduler(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give way to the other process's tests: Ray gives up if it has not started in 30 seconds."""
    beside = "PYTEST_XDIST_WORKER" in os.environ and not item.nodeid.startswith(STARTING)
    if beside and os.nice(0) == 0:
        os.nice(5)


@pytest.fixture(scope="session")
def benchmark_dir() -> Path:
    """The published benchmark files; a test that wants them skips where they are not."""
    directory = os.environ.get("OTR_BENCHMARKS")
    if not directory or not Path(directory).is_dir():
        pytest.skip("OTR_BENCHMARKS names no directory of published benchmark files")
    return Path(directory)
