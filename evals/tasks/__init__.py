"""Benchmarks by name: every module here without a leading underscore is one.

To add a benchmark:

1. Create `evals/tasks/NAME.py` with `SOURCE`, a `_hub.Source`: its file, hub data set and commit.
2. Add `load(directory: Path | None) -> Benchmark`, which makes an `Item` from each of `_hub.rows`;
   `_mathematics`, `_choice` and `_code` have the usual prompts, answer rules and decoding.
3. For base models, set `Item.completion`, and add `SHOTS` and `base(benchmark) -> Benchmark`.
4. Add its size to `SIZES` in tests/evals/tasks, and three of its items to tests/assets/benchmarks.
"""

import dataclasses
import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

from evals.benchmark import Benchmark, check_items
from evals.hints import nearest_name
from evals.tasks import _class, _options, _own
from evals.tasks._options import parse as parse_name  # noqa: F401  # for other packages
from evals.tasks._options import short_name  # noqa: F401  # for other packages

FOLDER_VARIABLE = "OTR_BENCHMARKS"
_OWN = {"file": _own.load, "class": _class.load}


def names() -> tuple[str, ...]:
    """Return the names of the built-in benchmarks, in alphabetical order."""
    modules = pkgutil.iter_modules(__path__)
    return tuple(sorted(module.name for module in modules if not module.name.startswith("_")))


def base_names() -> tuple[str, ...]:
    """Return those of `names()` that also exist with the suffix "-base", for base models."""
    return tuple(name for name in names() if hasattr(_module(name), "base"))


def load(
    name: str, directory: str | Path | None = None, *, max_items: int | None = None
) -> Benchmark:
    """Load a benchmark by name.

    Args:
        name: one of `names()`, "file:PATH.jsonl" or "file:PATH.jsonl#name" (see `_own`), or
            "class:MODULE:CLASS" (see `_class`). After a built-in name, "-base" selects the prompt
            for base models, a text to continue, usually with worked examples. After any name, "@N"
            draws N answers per item at temperature 1 and top_p 1 instead of decoding greedily, and
            reports their mean; after that, ":KEY=VALUE,..." sets options (see `_options`), which
            become part of the benchmark's name. Examples: "gsm8k", "aime24@16", "math500-base@4",
            "gsm8k@16:temperature=0.7,max_tokens=2048", "gsm8k:items=1-200".
        directory: folder of the published files with one subfolder per benchmark, by default
            $OTR_BENCHMARKS. Without either, data sets come from the Hugging Face hub.
        max_items: use only this many items, evenly spread over all of them.

    Raises:
        ValueError: the name or an option is unknown, there is no prompt for base models, a file is
            missing or malformed (with line and field), there are no items, or max_items < 1.
    """
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items is {max_items}; give at least 1, or none for all items")
    parts = _options.parse(name)
    kind, _, address = parts.address.partition(":")
    if kind in _OWN and address:
        benchmark = _OWN[kind](address)
    else:
        folder = directory or os.environ.get(FOLDER_VARIABLE)
        benchmark = _load_builtin(parts, Path(folder) if folder else None)
    check_items(benchmark.items, name)
    return _thin(_options.apply(benchmark, parts), max_items)


def check_name(name: str) -> None:
    """Check the name of a benchmark, without reading its files.

    Raises:
        ValueError: the name or an option is unknown.
    """
    parts = _options.parse(name)
    kind, _, address = parts.address.partition(":")
    if not (kind in _OWN and address):
        _check_builtin(parts)


def _check_builtin(parts: _options.Name) -> None:
    name = parts.address
    task = name.removesuffix("-base")
    if Path(name).is_file():
        raise ValueError(f'"{name}" is a file: give "file:{name}" to use it as a benchmark')
    if task not in names():
        suffix = name[len(task) :] + parts.suffix
        near = nearest_name(task.partition(":")[0], names())
        raise ValueError(
            f'unknown benchmark "{name}"; did you mean "{near}{suffix}"? '
            f'Known: {", ".join(names())}, and "file:PATH.jsonl" or "class:MODULE:CLASS" for your '
            "own benchmark"
        )


def _load_builtin(parts: _options.Name, directory: Path | None) -> Benchmark:
    _check_builtin(parts)
    name = parts.address
    task = name.removesuffix("-base")
    module = _module(task)
    if task == name:
        return module.load(directory)
    if not hasattr(module, "base"):
        raise ValueError(
            f'"{task}" has no prompt for base models, because none is in common use; '
            f"these have one: {', '.join(base_names())}"
        )
    benchmark = module.base(module.load(directory))
    if not all(item.completion for item in benchmark.items):
        where = directory or "the Hugging Face hub"
        raise ValueError(f'"{name}" needs worked examples: no {module.SHOTS.file} in {where}')
    return dataclasses.replace(benchmark, name=name, style="completion")


def _module(task: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{task}")


def _thin(benchmark: Benchmark, max_items: int | None) -> Benchmark:
    count = len(benchmark.items)
    if max_items is None or max_items >= count:
        return benchmark
    items = tuple(benchmark.items[index * count // max_items] for index in range(max_items))
    notes = (f"{max_items} of {count:,} items", *benchmark.notes)
    return dataclasses.replace(benchmark, items=items, notes=notes)
