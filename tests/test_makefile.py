"""`make setup` says when it does not use the Python that was asked for; `make real` is a sweep."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"


def test_another_python_than_that_of_the_environment_is_refused(tmp_path: Path) -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "setup", *words], cwd=tmp_path, capture_output=True, text=True
        )

    shutil.copy(MAKEFILE, tmp_path)
    for name in ("requirements", "requirements-cpu", "requirements-gpu", "requirements-docs"):
        (tmp_path / f"{name}.txt").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / ".venv" / ".ready").write_text("Python of the environment")
    other = tmp_path / "python9"
    other.write_text("#!/bin/sh\necho 9 9\n")
    other.chmod(0o755)
    same = make(f"PYTHON={os.path.realpath(sys.executable)}")
    assert make().returncode == same.returncode == 0 and "uses .venv" in same.stdout
    refused = make(f"PYTHON={other}")
    assert refused.returncode != 0
    assert f".venv has another Python than PYTHON={other}: remove .venv" in refused.stderr


def test_make_real_is_the_preset_gsm8k() -> None:
    words = ["make", "--no-print-directory", "--dry-run", "real"]
    done = subprocess.run(words, cwd=MAKEFILE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].endswith("pipelines/full_sweep.py --preset gsm8k")
