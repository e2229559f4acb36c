"""What `nvidia-smi` says about the GPUs of this machine, without a CUDA context of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from time import monotonic, sleep

SHARE = 0.9
"""Share of the memory of its GPUs that a replica uses; the rest is for CUDA's own contexts."""
_FIELDS = "name,driver_version,memory.free,memory.total"
_SECONDS = 30.0
_RELEASE_S = 60.0


@dataclass(frozen=True)
class Card:
    """A GPU: its name, its driver's version, free and total memory in GiB."""

    name: str
    driver: str
    free_gib: float
    total_gib: float


def cards(visible: str = "") -> list[Card]:
    """Return the GPUs of this machine; empty without an NVIDIA driver.

    Args:
        visible: numbers or names of some of them, as in CUDA_VISIBLE_DEVICES; empty: all.

    Raises:
        ValueError: the driver does not work.
    """
    if not shutil.which("nvidia-smi"):
        return []
    words = ["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            words + ([f"--id={visible}"] if visible else []),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"nvidia-smi does not answer within {_SECONDS:g} s") from error
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise ValueError(f"nvidia-smi fails ({said[:200]}): reboot, or install the driver anew")
    return [_card(line) for line in done.stdout.splitlines() if line.strip()]


def wait_for_memory(share: float, seconds: float = _RELEASE_S) -> None:
    """Wait until this share of each visible GPU is free; vLLM refuses to start before that.

    Ray gives the GPU of a process that has just ended to the next one, also while the driver still
    frees the memory. Afterwards vLLM starts in any case, and reports what it lacks.

    Args:
        share: between 0 and 1.
        seconds: longest wait.
    """
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        try:
            visible = cards(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        except ValueError:  # vLLM has an error of its own for a driver that does not work
            return
        if all(card.free_gib >= share * card.total_gib for card in visible):
            return
        sleep(0.2)


def _card(line: str) -> Card:
    name, driver, free, total = (word.strip() for word in line.rsplit(",", 3))
    return Card(name, driver, _gib(free), _gib(total))


def _gib(mebibytes: str) -> float:
    """Return GiB; of a GPU that is divided (MIG) nvidia-smi does not tell."""
    try:
        return float(mebibytes) / 1024
    except ValueError:
        return 0.0
