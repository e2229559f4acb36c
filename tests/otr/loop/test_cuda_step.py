"""What a training step in bfloat16 asks of a GPU, on a machine without one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.assets.fake_cuda import MICRO_BATCHES

LAYERS = 2
FLASH = ("qwen3", "llama", "mistral", "gemma3_text", "phi3", "gpt_neox")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `tests.assets.fake_cuda` reports of each family."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch_dir, guard = Path(torch.__file__).parent, tmp_path_factory.mktemp("guard") / "guard.so"
    compiler = ["g++", "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{torch_dir / 'include'}"]
    source = ROOT / "tests" / "assets" / "fake_cuda_guard.cpp"
    library = [f"-L{torch_dir / 'lib'}", "-lc10", "-o", str(guard)]
    subprocess.run([*compiler, str(source), *library], check=True)
    command = [sys.executable, "-m", "tests.assets.fake_cuda", str(guard), *FLASH, "gemma2"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", FLASH)
def test_all_examples_attend_in_one_call_of_flash_attention(
    steps: dict[str, dict[str, Any]], family: str
) -> None:
    calls = LAYERS * MICRO_BATCHES
    assert steps[family]["attention"] == {"_varlen_attn bfloat16": calls}


@pytest.mark.parametrize("family", [*FLASH, "gemma2"])
def test_the_host_waits_once_per_step(steps: dict[str, dict[str, Any]], family: str) -> None:
    """For the numbers that decide whether the step is taken."""
    assert [place.partition(":")[0] for place in steps[family]["waits"]] == [
        "_local_scalar_dense loop.py"
    ]


@pytest.mark.parametrize("family", [*FLASH, "gemma2"])
def test_no_operation_mixes_devices(steps: dict[str, dict[str, Any]], family: str) -> None:
    assert not steps[family]["mixed"]
