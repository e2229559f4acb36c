"""Old names, accepted for one release with a DeprecationWarning.

Remove this module and all uses of it in version 0.3.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

MOVED = {
    "otr.attention": "otr.models.attention",
    "otr.checkpoint": "otr.loop.checkpoint",
    "otr.checks": "otr.models.checks",
    "otr.draws": "otr.loss.draws",
    "otr.evaluate": "otr.loop.evaluate",
    "otr.fake_step": "otr.memory.fake_step",
    "otr.identity": "otr.loop.identity",
    "otr.kernels": "otr.loss.kernels",
    "otr.linear": "otr.loss.fused",
    "otr.lora": "otr.models.lora",
    "otr.model": "otr.models.load",
    "otr.objective": "otr.loss.objective",
    "otr.parallel": "otr.loop.parallel",
    "otr.planner": "otr.memory.planner",
    "otr.policy": "otr.loop.policy",
    "otr.rows": "otr.loss.rows",
    "otr.shape": "otr.models.architecture",
    "otr.tokenizer": "otr.models.tokenizer",
    "otr.training.saved": "otr.training.checkpoint_store",
}


class _Alias(Loader):
    """Loads a moved module, so that its old and new paths are the same module."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(MOVED[spec.name])
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # importlib has just replaced it by the alias's


class _MovedFinder(MetaPathFinder):
    """Finds the modules of `MOVED` by their old paths, with a warning."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in MOVED:
            return None
        warnings.warn(
            f"{fullname} has moved to {MOVED[fullname]}", DeprecationWarning, stacklevel=2
        )
        return ModuleSpec(fullname, _Alias())


def install_moved_modules() -> None:
    """Make the old module paths importable."""
    # First, since a directory of an old path may still exist with nothing but __pycache__.
    sys.meta_path.insert(0, _MovedFinder())


def renamed_arguments(**new_names: str) -> Callable[[F], F]:
    """Let a function, or the constructor of a dataclass, also accept arguments by their old names.

    Args:
        new_names: the new name of each old argument.

    Returns:
        A decorator.
    """

    def decorate(target: F) -> F:
        function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old in new_names.keys() & kwargs.keys():
                new = new_names[old]
                warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        if isinstance(target, type):
            target.__init__ = call  # type: ignore[misc]
            return target
        return call  # type: ignore[return-value]

    return decorate


def renamed_names(module: str, **new_names: str) -> Callable[[str], Any]:
    """Let names of a module also be imported by their old spellings.

    Args:
        module: the module's `__name__`.
        new_names: the new name of each old one.

    Returns:
        The module's `__getattr__`.
    """

    def getattr_of_module(old: str) -> Any:
        if old not in new_names:
            raise AttributeError(f"module {module!r} has no attribute {old!r}")
        new = new_names[old]
        warnings.warn(f"{module}.{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], new)

    return getattr_of_module
