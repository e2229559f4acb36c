"""Benchmarks by name: every module here whose name has no underscore in front is one.

In: a name and the folder of published files. Out: a `Benchmark`. To add a benchmark, add a module
with `load(directory: Path) -> Benchmark`, which reads its files by `evals.tasks._files`.
"""

import dataclasses
import difflib
import importlib
import os
import pkgutil
from pathlib import Path

from evals.benchmark import Benchmark
from evals.tasks import _own

FOLDER_VARIABLE = "OTR_BENCHMARKS"


def names() -> tuple[str, ...]:
    """The built-in benchmarks, in alphabetical order."""
    modules = pkgutil.iter_modules(__path__)
    return tuple(sorted(module.name for module in modules if not module.name.startswith("_")))


def load(
    name: str, directory: str | Path | None = None, *, max_items: int | None = None
) -> Benchmark:
    """Reads a benchmark; starts nothing.

    Args:
        name: one of `names()`, or "file:PATH.jsonl" or "file:PATH.jsonl#name" for one's own (see
            `evals.tasks._own`).
        directory: folder of the published files, one subfolder a benchmark; default
            $OTR_BENCHMARKS. Not used by "file:".
        max_items: keep this many items, spread evenly over the whole so that no part is left out.

    Raises:
        ValueError: unknown name, missing file, broken file (with line and field), max_items < 1.
    """
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items is {max_items}; give at least 1, or none for all items")
    if name.startswith("file:"):
        return _thinned(_own.load(name.removeprefix("file:")), max_items)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0)
        raise ValueError(
            f'unknown benchmark "{name}"; did you mean "{near[0]}"? '
            f'Known: {", ".join(names())}, and "file:PATH.jsonl" for your own'
        )
    folder = directory or os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise ValueError(
            f'benchmark "{name}" needs the folder of its published files: '
            f"set {FOLDER_VARIABLE} or give the directory"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    return _thinned(module.load(Path(folder)), max_items)


def _thinned(benchmark: Benchmark, max_items: int | None) -> Benchmark:
    count = len(benchmark.items)
    if max_items is None or max_items >= count:
        return benchmark
    kept = tuple(benchmark.items[index * count // max_items] for index in range(max_items))
    return dataclasses.replace(benchmark, items=kept)
