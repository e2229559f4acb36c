"""Check what a GPU needs before its first use: driver, build of torch, compiler."""

import os
import shutil
import sysconfig
from pathlib import Path

from evals import gpu
from pipelines.config.presets import SweepConfig

FIRST_DRIVER = 580
"""First branch of NVIDIA's driver that runs CUDA 13, which torch 2.13 is built for."""
_CPU_ONLY = "to compute on the CPU, set CUDA_VISIBLE_DEVICES to nothing"


def check_gpu(config: SweepConfig) -> str:
    """Check that torch and Triton can use the GPUs of this machine; those of a cluster are unknown.

    A GPU that is there but can't be used is an error, since the run would compute on the CPU
    without a word.

    Raises:
        ValueError: driver, build of torch or GPU are too old, torch finds no GPU, or there is no C
            compiler or no Python.h.
    """
    if os.environ.get("RAY_ADDRESS"):
        return "those of the cluster at RAY_ADDRESS"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "hidden by CUDA_VISIBLE_DEVICES"
    try:
        cards = gpu.cards()
    except ValueError as error:
        raise ValueError(f"{error}; {_CPU_ONLY}") from error
    if not cards:
        return "no NVIDIA GPU"
    _check_driver(cards[0].driver)
    _check_torch()
    if config.train.workers.gpus or config.engine.gpus:
        _check_compiler()
    kinds = ", ".join(dict.fromkeys(f"{c.name} with {c.total_gib:.0f} GiB" for c in cards))
    return f"{len(cards)} x {kinds}, driver {cards[0].driver}"


def _check_driver(driver: str) -> None:
    branch = driver.partition(".")[0]
    if branch.isdigit() and int(branch) < FIRST_DRIVER:
        import torch

        raise ValueError(
            f"NVIDIA's driver is {driver}, but torch {torch.__version__} needs R{FIRST_DRIVER} or "
            f"newer: install that (on Ubuntu nvidia-driver-{FIRST_DRIVER}) and reboot; {_CPU_ONLY}"
        )


def _check_torch() -> None:
    import torch

    if torch.version.cuda is None:
        raise ValueError(
            f"this machine has a GPU, but torch {torch.__version__} is built for the CPU: remove "
            f".venv and run make setup again, or pip install -r requirements-gpu.txt; {_CPU_ONLY}"
        )
    if not torch.cuda.is_available():
        raise ValueError(
            "nvidia-smi lists a GPU that torch can't use: in a container, start it with "
            f"--gpus all; else python -c 'import torch; torch.cuda.init()' says why; {_CPU_ONLY}"
        )
    here = torch.cuda.get_device_capability()
    known = [word.removeprefix("sm_").rstrip("af") for word in torch.cuda.get_arch_list()]
    oldest = min((divmod(int(word), 10) for word in known if word.isdigit()), default=here)
    if here < oldest:
        raise ValueError(
            f"the GPU has compute capability {here[0]}.{here[1]}, but torch {torch.__version__} "
            f"has kernels from {oldest[0]}.{oldest[1]} on: use a newer GPU; {_CPU_ONLY}"
        )


def _check_compiler() -> None:
    """Check what Triton compiles with: a C compiler, and Python's header.

    Raises:
        ValueError: one of them is missing.
    """
    compiler = os.environ.get("CC")
    if not any(map(shutil.which, [compiler] if compiler else ["gcc", "clang"])):
        missing = f"CC={compiler} does not exist" if compiler else "there is neither gcc nor clang"
        raise ValueError(
            f"Triton compiles its kernels with a C compiler, but {missing}: install one (on Ubuntu "
            "apt-get install gcc)"
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.is_file():
        version = sysconfig.get_python_version()
        raise ValueError(
            f"Triton compiles its kernels against Python.h, but there is no {header}: install it "
            f"(on Ubuntu apt-get install python{version}-dev)"
        )
