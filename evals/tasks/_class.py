"""A benchmark of one's own in Python: a class of three methods.

In: "MODULE:CLASS"; the module is imported, from the current folder too. Out: a `Benchmark`, named
after the class. For example, in capitals.py, asked by "class:capitals:Capitals":

    from evals.benchmark import Decoding, Item

    class Capitals:
        def items(self):                        # the questions, in a fixed order
            return [Item("france", "What is the capital of France?", "Paris")]

        def grade(self, item, text):            # is this answer right?
            return item.answer.casefold() in text.casefold()

        def decoding(self):                     # how answers are drawn
            return Decoding(max_tokens=32)
"""

import importlib
import os
import sys
from typing import Any

from evals.benchmark import Benchmark, Decoding, Item

METHODS = ("items", "grade", "decoding")


def load(address: str) -> Benchmark:
    """Makes the class without arguments and asks it.

    Raises:
        ValueError: no such module, class or method; items or decoding of another type.
    """
    made = _found(address)()
    missing = [name for name in METHODS if not callable(getattr(made, name, None))]
    if missing:
        raise ValueError(f"class:{address} has no method {', '.join(missing)}")
    items, decoding = tuple(made.items()), made.decoding()
    for item in items:
        if not isinstance(item, Item):
            raise ValueError(f"class:{address}: items() gives {item!r:.80}, expected Item")
    if not isinstance(decoding, Decoding):
        raise ValueError(f"class:{address}: decoding() gives {decoding!r:.80}, expected Decoding")
    return Benchmark(
        name=address.rpartition(":")[2].lower(),
        domain="other",
        items=items,
        grade=made.grade,
        decoding=decoding,
        metric="accuracy",
        source=f"class:{address}",
    )


def _found(address: str) -> Any:
    module_name, _, class_name = address.partition(":")
    if not module_name or not class_name:
        raise ValueError(f'class:{address} is not of the form "class:MODULE:CLASS"')
    if os.getcwd() not in sys.path:  # a console script does not search the current folder
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"class:{address}: {error}; modules are looked for in {os.getcwd()} and PYTHONPATH"
        ) from error
    if not hasattr(module, class_name):
        raise ValueError(f'class:{address}: module "{module_name}" has no class "{class_name}"')
    return getattr(module, class_name)
