"""Commands start fast: slow libraries are imported only after the options were parsed."""

import subprocess
import sys

import pytest

LATE = ("torch", "transformers", "ray.serve", "ray.tune", "ray.train", "ray.data", "mlflow", "vllm")


@pytest.mark.parametrize(
    "module",
    [
        "pipelines.cli",
        "pipelines.train_one",
        "pipelines.full_sweep",
        "pipelines.score_checkpoint",
        "pipelines.doctor",
        "pipelines.merge_adapter",
    ],
)
def test_slow_libraries_are_imported_later(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
