"""A Python without some packages, though they are installed."""

from collections.abc import Iterable

_SOURCE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if not any(name == one or name.startswith(one + ".") for one in {packages}):
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def without(packages: Iterable[str]) -> str:
    """Return source text after which Python finds none of the packages and modules named."""
    return _SOURCE.format(packages=tuple(packages))
