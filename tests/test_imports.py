"""What a command imports before it has looked at its options and checked what it is to do.

A person waits for it, with each wrong word: torch, Ray Serve and Ray Train take seconds.
"""

import subprocess
import sys

import pytest

LATE = ("torch", "transformers", "ray.serve", "ray.tune", "ray.train", "ray.data", "mlflow", "vllm")


@pytest.mark.parametrize(
    "module", ["pipelines.train_one", "pipelines.full_sweep", "pipelines.score_checkpoint"]
)
def test_what_takes_seconds_is_imported_later(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {LATE} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
