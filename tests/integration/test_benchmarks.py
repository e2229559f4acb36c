"""The benchmarks run at tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.benchmarks]


def run(module: str, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", *options],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_loss_benchmark_compares_equal_work(tmp_path: Path) -> None:
    """The benchmark compares every variant and peer with a float64 reference before timing it."""
    report = tmp_path / "report.json"
    size = ("--cases", "64x32x1000:float32", "--memory-rows", "64", "--repeat", "1")
    run("loss", *size, "--json", str(report))
    [case] = json.loads(report.read_text())["cases"]
    assert {"sft", "otr-k256", "full-ce", "torch-lce-512", "trl-nll"} < set(case["seconds"])
    assert case["ratios"]["otr-k256 / sft"] > 0


def test_the_variance_benchmark_finds_no_bias(tmp_path: Path) -> None:
    run("variance", "--out", str(tmp_path), "--repeats", "3")
    report = json.loads((tmp_path / "variance.json").read_text())
    for curves in report["variance"].values():
        assert all(h < s for h, s in zip(curves["half"], curves["sampled"], strict=True))
    assert (tmp_path / "variance.svg").stat().st_size > 0
