"""A user's own benchmark in Python: a class with three methods, named "class:MODULE:CLASS".

The module may also lie in the current folder. The benchmark takes the name of the class. For
example, capitals.py defines "class:capitals:Capitals":

    from evals.benchmark import Decoding, Item

    class Capitals:
        def items(self):                        # the questions, in a fixed order
            return [Item("france", "What is the capital of France?", "Paris")]

        def grade(self, item, text):            # True if the answer is right
            return item.answer.casefold() in text.casefold()

        def decoding(self):                     # how answers are sampled
            return Decoding(max_tokens=32)
"""

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item

METHODS = ("items", "grade", "decoding")


def load(address: str) -> Benchmark:
    """Create the class without arguments and build a benchmark from it.

    Raises:
        ValueError: the module, class or a method does not exist, or returns another type.
    """
    own = _find_class(address)()
    missing = [name for name in METHODS if not callable(getattr(own, name, None))]
    if missing:
        raise ValueError(f"class:{address} has no method {', '.join(missing)}")
    items, decoding = own.items(), own.decoding()
    if not isinstance(items, Iterable):
        raise ValueError(f"class:{address}: items() returns {items!r:.80}, expected a list of Item")
    items = tuple(items)
    for item in items:
        if not isinstance(item, Item):
            raise ValueError(f"class:{address}: items() returns {item!r:.80}, expected Item")
    if not isinstance(decoding, Decoding):
        raise ValueError(f"class:{address}: decoding() returns {decoding!r:.80}, expected Decoding")
    return Benchmark(
        name=address.rpartition(":")[2].lower(),
        domain="other",
        items=items,
        grade=own.grade,
        decoding=decoding,
        metric="accuracy",
        source=f"class:{address}",
    )


def _find_class(address: str) -> Any:
    module_name, _, class_name = address.partition(":")
    if not module_name or not class_name:
        raise ValueError(f'class:{address} is not of the form "class:MODULE:CLASS"')
    if os.getcwd() not in sys.path:  # a console script does not search the current folder
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"class:{address}: {error}; modules are searched for in {os.getcwd()} and PYTHONPATH"
        ) from error
    if not hasattr(module, class_name):
        raise ValueError(f'class:{address}: module "{module_name}" has no class "{class_name}"')
    return getattr(module, class_name)
