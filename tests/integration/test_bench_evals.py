"""The scoring benchmark runs at tiny sizes, and compares its measures with their bars."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.evals import BARS, measure

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.benchmarks
def test_every_part_is_measured(tmp_path: Path) -> None:
    """The benchmark fails if vLLM's own engine gives other tokens or scores than ours."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.benchmarks.evals", "--quick", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(report.read_text())
    assert [line["measure"] for line in found["measures"]] == [bar[0] for bar in BARS.values()]
    assert found["throughput"]["tokens"] > 0 and found["swap"]["median_s"] > 0
    assert len(found["grading"]["score_s"]) == len(found["checkpoints"]["fresh_s"]) == 1


@pytest.mark.parametrize(("value", "met"), [(0.09, "yes"), (0.11, "NO")])
def test_a_bar_is_met_or_not(value: float, met: str) -> None:
    assert measure("grading", {BARS["grading"][1]: value})["met"] == met
    assert measure("throughput", {"ratio": 1 - value})["met"] == "yes"
