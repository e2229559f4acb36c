"""From the names in a configuration to paths that every process of a run can open.

In: a `SweepConfig`, and a directory for built-in files. Out: the same with absolute paths.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evals import tasks
from evals.benchmark import Benchmark
from otr.training.sources import absolute_path
from pipelines.builtin import corpus
from pipelines.config.presets import SweepConfig


def resolved(config: SweepConfig, builtin_files: Path) -> SweepConfig:
    """Write the built-in files that are named, and make local paths absolute.

    Raises:
        ValueError: an unknown ``builtin:`` name.
    """

    def place(name: str) -> str:
        return absolute_path(corpus.materialise(name, builtin_files))

    def benchmark(name: str) -> str:
        path = corpus.materialise(name, builtin_files)
        return name if path == name else f"file:{path}"

    data, model = config.train.data, config.train.model
    path = place(model.path)
    return replace(
        config,
        output=str(Path(config.output).absolute()),
        train=replace(
            config.train,
            model=replace(model, path=path if Path(path).is_dir() else model.path),
            data=replace(
                data,
                paths=tuple(map(place, data.paths)),
                validation=tuple(map(place, data.validation)),
            ),
        ),
        benchmarks=tuple(map(benchmark, config.benchmarks)),
    )


def load_benchmarks(names: Sequence[str], directory: str, max_items: int) -> list[Benchmark]:
    """The benchmarks of a resolved config.

    Raises:
        ValueError: one is unknown, missing or broken.
    """
    return [tasks.load(name, directory or None, max_items=max_items or None) for name in names]


def local_model(path: str) -> Path:
    """The model's directory; a hub's is fetched to the Hugging Face cache.

    Raises:
        ValueError: neither a directory nor on the hub.
    """
    if Path(path).is_dir():
        return Path(path).absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(path))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"no model at {path!r}, neither here nor on the hub: {reason}") from error
