"""A sandbox for Python programs that a model wrote; `run` is the entry point.

The fork server imports this package in a bare interpreter, so `runner` is imported on first use.
Read `runner`, `server`, `child`, `wire`, `remote`, `encoding`, `guard`, `isolation` and `seccomp`
in this order.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.sandbox.runner import SandboxResult, run

__all__ = ["SandboxResult", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("evals.sandbox.runner"), name)
    raise AttributeError(f"module 'evals.sandbox' has no attribute {name!r}")
