"""A run with its names resolved: absolute paths, loaded benchmarks, a local base model.

`prepare` is called once per command; its parts are passed on. Benchmarks are read and a model from
the Hugging Face hub is downloaded at the first use, once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from evals import tasks
from evals.benchmark import Benchmark
from otr.training.sources import absolute_path
from pipelines.builtin import corpus
from pipelines.config.presets import SweepConfig


@dataclass(frozen=True)
class PreparedRun:
    """A run whose paths every process on its machines can open."""

    config: SweepConfig
    """The configuration with absolute paths and without ``builtin:`` names."""

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return Path(self.config.output) / self.config.name

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks; a ValueError if one is unknown, missing or broken."""
        config = self.config
        return [
            tasks.load(name, config.benchmark_dir or None, max_items=config.max_items or None)
            for name in config.benchmarks
        ]

    @cached_property
    def model_dir(self) -> Path:
        """The base model's directory; a ValueError if the model is not available."""
        return local_model(self.config.train.model.path)


def prepare(config: SweepConfig, builtin_files: Path | None = None) -> PreparedRun:
    """Write the built-in files that a configuration names and make its local paths absolute.

    Args:
        config: the configuration as given.
        builtin_files: directory for the built-in files; by default one below `config.output`.

    Raises:
        ValueError: an unknown ``builtin:`` name.
    """
    folder = builtin_files or corpus.builtin_dir(config.output)

    def resolve(name: str) -> str:
        return absolute_path(corpus.resolve_path(name, folder))

    def resolve_benchmark(name: str) -> str:
        path = corpus.resolve_path(name, folder)
        return name if path == name else f"file:{path}"

    data, model = config.train.data, config.train.model
    path = resolve(model.path)
    return PreparedRun(
        replace(
            config,
            output=str(Path(config.output).absolute()),
            train=replace(
                config.train,
                model=replace(model, path=path if Path(path).is_dir() else model.path),
                data=replace(
                    data,
                    paths=tuple(map(resolve, data.paths)),
                    validation=tuple(map(resolve, data.validation)),
                ),
            ),
            benchmarks=tuple(map(resolve_benchmark, config.benchmarks)),
        )
    )


@contextmanager
def prepare_temporarily(config: SweepConfig) -> Iterator[PreparedRun]:
    """Prepare a run for a command that leaves nothing behind: built-in files are deleted after."""
    with TemporaryDirectory() as folder:
        yield prepare(config, Path(folder))


def local_model(path: str) -> Path:
    """Return a model's directory; download a model on the Hugging Face hub to the local cache.

    Raises:
        ValueError: `path` is neither a directory nor a model on the hub.
    """
    if Path(path).is_dir():
        return Path(path).absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(path))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"no model {path!r}: not a directory, and not on the Hugging Face hub ({reason})"
        ) from error
