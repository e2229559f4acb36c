"""Old module paths, importable for one release with a DeprecationWarning.

To be removed in version 0.3. Code sandboxes import this package too, so nothing heavy is imported
here before an old path is used.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "evals.deployment": "evals.serving.deployment",
    "evals.engine": "evals.serving.engine",
    "evals.notation": "evals.grading.notation",
    "evals.probe": "evals.serving.probe",
    "evals.published": "evals.grading.published",
}


class _MovedFinder:
    """Finder and loader of the old paths: each one gives the module at its new path."""

    @staticmethod
    def find_spec(fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        import warnings

        warnings.warn(
            f"{fullname} has moved to {MOVED[fullname]}", DeprecationWarning, stacklevel=2
        )
        return ModuleSpec(fullname, _MovedFinder)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        from importlib import import_module

        module = import_module(MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        # importlib has overwritten the module's own spec with that of the old path.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def install_moved_modules() -> None:
    """Make the old paths importable."""
    sys.meta_path.append(_MovedFinder)
