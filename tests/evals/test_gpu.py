"""What is read from `nvidia-smi`, by a script in its place that computes as it does."""

import time
from pathlib import Path

import pytest

from evals import gpu
from tests.assets.nvidia_smi import card, install


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    return install(tmp_path, monkeypatch)


def test_cards_and_those_that_are_visible(nvidia_smi) -> None:
    nvidia_smi(card(), card(free=1024, total=2048))
    assert [c.total_gib for c in gpu.cards()] == [81_559 / 1024, 2]
    assert gpu.cards("1") == [gpu.Card("NVIDIA H100 80GB HBM3", "580.95.05", 1, 2)]
    nvidia_smi(card("[N/A]", "[N/A]"))
    assert gpu.cards()[0].total_gib == 0


def test_a_broken_driver_is_an_error_with_a_remedy(nvidia_smi) -> None:
    nvidia_smi(error="Failed to initialize NVML: Driver/library version mismatch")
    with pytest.raises(ValueError, match=r"nvidia-smi fails \(Failed .* mismatch\): reboot"):
        gpu.cards()


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.cards() == []


def test_an_engine_waits_for_the_memory_of_the_process_before(nvidia_smi, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    nvidia_smi(card(free=0), card(free=0, total=1000))
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        nvidia_smi(card(free=0), card(free=460 * len(naps), total=1000))

    monkeypatch.setattr(gpu, "sleep", sleep)
    gpu.wait_for_memory(0.45)
    assert len(naps) == 1, "its half is free"
    gpu.wait_for_memory(0.9)
    assert len(naps) == 2
    before = time.monotonic()
    monkeypatch.setattr(gpu, "sleep", lambda seconds: None)
    nvidia_smi(card(free=0), card(free=0, total=1000))
    gpu.wait_for_memory(0.9, seconds=0.01)
    assert time.monotonic() - before < 60, "vLLM then says what it lacks"
