"""`make gpu-check` at tiny sizes on the CPU, where neither Ray nor vLLM nor MLflow is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.without import without
from tests.gpu.check import Failed, Machine

ROOT = Path(__file__).resolve().parents[2]
MISSING = ("ray", "mlflow", "vllm", "datasets", "trl")

pytestmark = pytest.mark.integration


def test_steps_are_measured_and_the_sweep_is_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        without(MISSING)
    )  # of this process and those it starts
    report = tmp_path / "check.json"
    command = [sys.executable, "-m", "tests.gpu.check", "--device", "cpu", "--json", str(report)]
    done = subprocess.run(
        [*command, "--parts", "step", "sweep"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    measures = {one["name"]: one for one in json.loads(report.read_text())["measures"]}
    assert "failed" not in measures, done.stderr
    assert measures["tokens/s, otr"]["value"] > 0
    assert measures["waits of the host per step"]["value"] == 0  # of a GPU that is not there
    assert measures["skipped"]["value"] == "not installed: ray, vllm, mlflow"
    assert done.stdout.startswith("part")


def test_what_fails_or_takes_too_long_is_told() -> None:
    with pytest.raises(Failed, match="exit code 3"):
        Machine("cpu", 60).run("-c", "print('why'); raise SystemExit(3)")
    with pytest.raises(Failed, match="not done in the 0 s left"):
        Machine("cpu", 0).run("-c", "import time; time.sleep(60)")
