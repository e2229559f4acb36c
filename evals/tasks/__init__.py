"""Benchmarks by name: every module here whose name has no underscore in front is one.

In: a name and the folder of published files. Out: a `Benchmark`. To add a benchmark, add a module
with `SOURCE` and `load(directory: Path | None) -> Benchmark` (None: from the hub), which reads by
`evals.tasks._hub`; for base models also `base(benchmark) -> Benchmark`, which gives it the stop
strings and the answer rule that go with `Item.completion`, and `SHOTS`, where its examples lie.
"""

import dataclasses
import importlib
import os
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

from evals.benchmark import Benchmark
from evals.hints import nearest_name
from evals.tasks import _class, _own

FOLDER_VARIABLE = "OTR_BENCHMARKS"
_OWN = {"file": _own.load, "class": _class.load}


def names() -> tuple[str, ...]:
    """The built-in benchmarks, in alphabetical order."""
    modules = pkgutil.iter_modules(__path__)
    return tuple(sorted(module.name for module in modules if not module.name.startswith("_")))


def base_names() -> tuple[str, ...]:
    """Those of `names()` that have a prompt for base models, for which "-base" is appended."""
    return tuple(name for name in names() if hasattr(_module(name), "base"))


def load(
    name: str, directory: str | Path | None = None, *, max_items: int | None = None
) -> Benchmark:
    """Reads a benchmark; starts nothing.

    Args:
        name: one of `names()`; with "-base", the prompt with worked examples that a base model
            continues; with "@N", N answers an item at temperature 1 and top_p 1 instead of the
            likeliest one, and their mean. E.g. "gsm8k", "aime24@16", "math500-base@4". For one's
            own "file:PATH.jsonl" or "file:PATH.jsonl#name" (see `evals.tasks._own`) or
            "class:MODULE:CLASS" (see `evals.tasks._class`), with "@N" too.
        directory: folder of the published files, one subfolder a benchmark; default
            $OTR_BENCHMARKS; where neither is given, the Hugging Face hub. Not used for one's own.
        max_items: keep this many items, spread evenly over the whole so that no part is left out.

    Raises:
        ValueError: unknown name, no prompt for base models, missing file, broken file (with line
            and field), no items, max_items < 1.
    """
    if max_items is not None and max_items < 1:
        raise ValueError(f"max_items is {max_items}; give at least 1, or none for all items")
    plain, _, samples = name.rpartition("@") if re.search(r"@\d+$", name) else (name, "", "")
    kind, _, address = plain.partition(":")
    if kind in _OWN and address:
        benchmark = _OWN[kind](address)
    else:
        folder = directory or os.environ.get(FOLDER_VARIABLE)
        benchmark = _published(plain, samples, Path(folder) if folder else None)
    _check(benchmark, name)
    return _thinned(_sampled(benchmark, samples, name), max_items)


def _published(name: str, samples: str, directory: Path | None) -> Benchmark:
    task = name.removesuffix("-base")
    if task not in names():
        suffix = name[len(task) :] + (f"@{samples}" if samples else "")
        near = nearest_name(task, names())
        raise ValueError(
            f'unknown benchmark "{name}"; did you mean "{near}{suffix}"? '
            f'Known: {", ".join(names())}, and "file:PATH.jsonl" or "class:MODULE:CLASS" for your '
            "own"
        )
    module = _module(task)
    if task == name:
        return module.load(directory)
    if not hasattr(module, "base"):
        raise ValueError(
            f'"{task}" has no prompt for base models, as no common practice has one; '
            f"these have: {', '.join(base_names())}"
        )
    benchmark = module.base(module.load(directory))
    if not all(item.completion for item in benchmark.items):
        where = directory or "the Hugging Face hub"
        raise ValueError(f'"{name}" needs worked examples: no {module.SHOTS.file} in {where}')
    return dataclasses.replace(benchmark, name=name, style="completion")


def _module(task: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{task}")


def _check(benchmark: Benchmark, name: str) -> None:
    if not benchmark.items:
        raise ValueError(f'benchmark "{name}" is empty; it needs at least one item')
    ids = Counter(item.id for item in benchmark.items)
    twice = next((id for id, count in ids.items() if count > 1), None)
    if twice is not None:
        raise ValueError(f'benchmark "{name}": the id "{twice}" stands there more than once')


def _sampled(benchmark: Benchmark, samples: str, name: str) -> Benchmark:
    if not samples:
        return benchmark
    if int(samples) < 1:
        raise ValueError(f'"{name}" asks for {samples} answers an item; give at least "@1"')
    decoding = dataclasses.replace(
        benchmark.decoding, num_samples=int(samples), temperature=1.0, top_p=1.0
    )
    return dataclasses.replace(
        benchmark,
        name=f"{benchmark.name}@{int(samples)}",
        metric=f"avg@{int(samples)}",
        decoding=decoding,
    )


def _thinned(benchmark: Benchmark, max_items: int | None) -> Benchmark:
    count = len(benchmark.items)
    if max_items is None or max_items >= count:
        return benchmark
    kept = tuple(benchmark.items[index * count // max_items] for index in range(max_items))
    return dataclasses.replace(benchmark, items=kept)
