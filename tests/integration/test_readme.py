"""The README's Python example runs as it is printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.assets.newcomer import REPOSITORY, environment

pytestmark = pytest.mark.integration


def test_one_local_job(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)
    [source] = [block for block in blocks if "ray.init" in block]
    rows = [{"prompt": f"{i} + 1?", "completion": str(i + 1)} for i in range(200)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "pipelines").symlink_to(REPOSITORY / "pipelines")
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (Path(done.stdout.split()[-1]) / "model.safetensors").is_file()
