"""The kernels compile for NVIDIA's and AMD's GPUs, without spills and with wide loads.

Triton's interpreter accepts programs that its compiler refuses, and says nothing about speed.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

if not find_spec("triton"):
    pytest.skip("triton is not installed", allow_module_level=True)

import triton

from otr.loss import fused
from otr.loss.kernels import rows
from otr.loss.kernels.scaling import SPAN, multiply_kernel_
from tests.benchmarks import loss_estimate
from tests.otr.loss import compiled
from tests.otr.loss.compiled import CASES, H100_CASES, Code, Launch

ROOT = Path(__file__).parents[3]
H100 = [(case, kernel) for case, made in (CASES | H100_CASES).items() for kernel in made]
EVERY = [(case, kernel) for case, made in CASES.items() for kernel in made]


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@cache
def code(target: str, case: str, kernel: str) -> Code:
    return compiled.code((CASES | H100_CASES)[case][kernel].compile(target))


@pytest.mark.parametrize(("case", "kernel"), H100)
def test_on_an_h100_nothing_is_spilled(case: str, kernel: str) -> None:
    assert code("sm_90", case, kernel).spilled == 0


@pytest.mark.parametrize(("case", "kernel"), EVERY)
def test_on_an_a100_nothing_is_spilled(case: str, kernel: str) -> None:
    assert code("sm_80", case, kernel).spilled == 0


@pytest.mark.parametrize(("case", "kernel"), EVERY)
def test_on_an_mi300_nothing_is_spilled(case: str, kernel: str) -> None:
    text = CASES[case][kernel].compile("gfx942").asm["amdgcn"]
    spilled = re.findall(r"\.[sv]gpr_spill_count:\s+(\d+)", text)
    assert spilled and set(spilled) == {"0"}
    if kernel in ("statistics", "gradient_"):
        assert "load_ushort" not in text and "global_load_dwordx4" in text


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_the_passes_load_and_store_16_bytes(target: str) -> None:
    for case in CASES if target == "sm_80" else H100_CASES:
        for kernel in ("statistics", "gradient_"):
            if kernel in (CASES | H100_CASES)[case]:
                found = code(target, case, kernel)
                assert found.loads["128"] >= 4 and "16" not in found.loads
                assert kernel == "statistics" or found.stores["128"] >= 2


@pytest.mark.parametrize("kernel", ["statistics", "losses", "gradient_"])
def test_a_vocabulary_not_divisible_by_8_has_the_same_loads(kernel: str) -> None:
    assert (
        code("sm_90", "sampled, vocabulary 50257", kernel).loads
        == code("sm_90", "sampled", kernel).loads
    )


def test_draws_load_blocks_of_logits_by_16_bytes() -> None:
    """Only single logits have 2: the target's, and those drawn."""
    found = code("sm_90", "sampled", "losses")
    assert found.loads["128"] >= 10 and found.loads["16"] <= 5


def test_multiplying_by_a_number_loads_16_bytes() -> None:
    numbers, factor = torch.empty(64, device="meta"), torch.empty((), device="meta")
    for values in (numbers, numbers.bfloat16()):
        arguments = {"x_ptr": values, "factor_ptr": factor, "count": 64, "SPAN": SPAN}
        found = compiled.code(Launch(multiply_kernel_, arguments).compile("sm_90"))
        assert found.spilled == 0 and found.loads["128"] >= 4 and found.stores["128"] >= 4


def test_the_estimate_of_times_is_of_these_kernels() -> None:
    for name in ("SPAN", "BLOCK", "CDF", "LANES", "DRAWS", "OTHERS"):
        assert getattr(loss_estimate, name) == getattr(rows, name), name
    assert loss_estimate.CHUNK_BYTES == fused._LARGEST_BYTES
    loops = baseline()["kernels"]["sampled: losses"]["loops"]
    assert len(loops) == len(loss_estimate.LOOPS)


def baseline() -> dict[str, Any]:
    return json.loads(compiled.BASELINE.read_text())


def test_the_baseline_is_of_the_triton_that_is_pinned() -> None:
    for name in ("requirements-cpu.txt", "requirements-gpu.txt"):
        pinned = re.findall(r"^triton==(.*)$", (ROOT / name).read_text(), re.MULTILINE)
        assert pinned == [baseline()["triton"]], name


@pytest.mark.parametrize(("case", "kernel"), H100)
def test_registers_and_instructions_are_those_of_the_baseline(case: str, kernel: str) -> None:
    """A change is measured (``python -m tests.otr.loss.compiled``) and explained in its commit."""
    wanted = baseline()
    if triton.__version__ != wanted["triton"]:
        pytest.skip(
            f"triton {triton.__version__} is installed, but GPUs run {wanted['triton']}: "
            f"pip install --no-deps triton=={wanted['triton']}"
        )
    found = code("sm_90", case, kernel)
    assert wanted["kernels"][f"{case}: {kernel}"] == {
        "registers": found.registers,
        "instructions": found.instructions,
        "loops": found.loops,
    }
