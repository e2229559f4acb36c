"""requirements-gpu.txt pins every package of a GPU machine, and the pins fit together.

No package is installed or downloaded for it: the versions come from the metadata of the registry,
or of the packages that are installed here.
"""

import re
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.assets import lock

GPU_MACHINE = {
    "python_version": "3.11",
    "python_full_version": "3.11.13",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "extra": "",
}


def pins(name: str) -> dict[str, Version]:
    """Return package -> version of a requirements file, all of whose lines must be pins."""
    found = {}
    for line in (lock.ROOT / name).read_text().splitlines():
        if line and not line.startswith("#"):
            matched = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", line)
            assert matched, f"{name} has the line {line!r}, which is no pin"
            package = canonicalize_name(matched[1])
            assert package not in found, f"{package} twice"
            found[package] = Version(matched[2])
    return found


def test_it_has_every_pin_of_the_common_file_and_the_head_names_its_command() -> None:
    common, locked = pins("requirements.txt"), pins(lock.LOCK)
    assert common.items() <= locked.items(), "make lock"
    assert {"torch", "vllm", "triton", "nvidia-nccl-cu13"} <= locked.keys()
    assert "#    make lock\n" in (lock.ROOT / lock.LOCK).read_text()
    makefile = (lock.ROOT / "Makefile").read_text()
    assert "lock: setup\n\t@$(BIN)/python -m tests.assets.lock\n" in makefile


def test_what_installed_packages_require_is_pinned_as_they_require_it() -> None:
    """Of the packages that are installed here at the version of the lock file, also offline."""
    locked, looked_at = pins(lock.LOCK), 0
    for name, version in locked.items():
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(distribution.version) != version:
            continue
        looked_at += 1
        for text in distribution.requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(GPU_MACHINE):
                pinned = locked.get(canonicalize_name(needed.name))
                assert pinned is not None, f"{name} requires {text}, which is not pinned"
                assert needed.specifier.contains(pinned, prereleases=True), f"{name}: {text}"
    assert looked_at > 200


def test_it_is_what_the_registry_resolves_to(tmp_path: Path) -> None:
    for name in (*lock.SOURCES, lock.LOCK):
        shutil.copy(lock.ROOT / name, tmp_path)
    try:
        uv = lock.installed_uv(tmp_path / "uv")
    except OSError as error:
        pytest.skip(str(error))
    done = lock.resolve(uv, tmp_path)
    if done.returncode and any(text in done.stderr for text in lock.OFFLINE):
        pytest.skip(f"the registry does not answer: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    before, now = ((d / lock.LOCK).read_text() for d in (lock.ROOT, tmp_path))
    assert now == before, "make lock writes another file"
