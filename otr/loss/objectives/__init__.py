"""The objectives, one file each. Importing the package registers all of them.

A file has a class derived from `otr.loss.objective.Objective`; nothing else names an objective.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
