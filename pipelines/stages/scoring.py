"""Scores of the models of one run, by one engine that is started when it is first needed.

In: a resolved `SweepConfig`, the run's directory. Out: a `Scorer`, which several threads may use,
one at a time. Answers and scores are kept in `<directory>/scores/<name>`; what is there for the
same weights and items is taken from there. Ray must be running.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, cast

from evals.benchmark import Benchmark, TaskScore
from evals.files import digest
from evals.score import ModelServer, Progress, score
from evals.serving import adapters
from pipelines.config.presets import SweepConfig
from pipelines.config.resolve import load_benchmarks, local_model
from pipelines.merge_adapter import merge

if TYPE_CHECKING:
    from evals.serving.engine import Engine

_MOST_ADAPTERS = 32  # beside a model; each has a place in the engine's memory


class Scorer:
    """A context manager: the engine ends with it."""

    def __init__(self, config: SweepConfig, directory: Path) -> None:
        self.config, self.directory = config, directory
        self.starting: Callable[[], None] = lambda: None
        """Called when the engine has to be started."""
        self.settings = replace(config.engine, log_dir=str(directory / "logs" / "engine"))
        self._lock = RLock()
        self._engine: Engine | None = None
        self._base: Path | None = None
        self._beside: list[Path] = []  # adapters that the engine serves with their model
        self._begun = self._ended = False

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        config = self.config
        return load_benchmarks(config.benchmarks, config.benchmark_dir, config.max_items)

    def plan(self, models: Mapping[str, str]) -> None:
        """Say what is to be scored, so that LoRA adapters can be served beside their model.

        They are where the first of the models is theirs and all others are such adapters that vLLM
        can serve; else each is merged into its model, and the weights are swapped.
        """
        first, *others = map(local_model, models.values())
        every = all((path / adapters.CONFIG_FILE).is_file() for path in others)
        if self._engine is not None or not every or not 0 < len(others) <= _MOST_ADAPTERS:
            return
        try:
            adapters.check_all(others, first)
        except ValueError:
            return
        self._base, self._beside = first, others

    def score(self, name: str, path: str, progress: Progress | None = None) -> list[TaskScore]:
        """Score a model directory or hub name on all benchmarks; one at a time.

        Raises:
            ValueError, RuntimeError: as `evals.score.score`.
        """
        with self._lock:
            whole = self._whole(name, path)
            return score(
                lambda: self._serving(whole),
                self.settings,
                whole,
                self.benchmarks,
                results_dir=self.directory / "scores" / name,
                progress=progress,
            )

    def prove(self, name: str, path: str) -> None:
        """See that the engine serves a model directory as transformers does.

        Raises:
            ValueError, RuntimeError: as `evals.serving.engine.Engine.start`.
        """
        with self._lock:
            self._serving(self._whole(name, path))  # which is proven when it starts

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        # Without the lock: what another thread still generates or starts ends, too.
        if self._begun:
            from evals.serving import deployment

            deployment.shut_down()

    def _serving(self, model_dir: Path) -> ModelServer:
        """What serves a directory: the engine, or in it an adapter."""
        assert not self._ended, "the engine has ended"
        if self._engine is None:
            from evals.serving.engine import Engine  # Ray Serve's import takes more than a second

            self._begun = True
            self.starting()
            base = self._base or model_dir
            try:
                self._engine = Engine.start(base, settings=self.settings, adapter_dirs=self._beside)
            except BaseException:
                self._begun = False  # it ended what it began, if the Serve here was its own
                raise
        if model_dir in self._beside:
            return cast(ModelServer, self._engine.adapter(model_dir))  # has no need of a swap
        return self._engine

    def _whole(self, name: str, path: str) -> Path:
        """A directory that can be served; another adapter is merged into its model, once."""
        found = local_model(path)
        if found in self._beside or not (found / adapters.CONFIG_FILE).is_file():
            return found
        told = digest(found.glob("adapter_*"))  # another adapter may come to lie there
        merged = self.directory / "merged" / f"{name}-{told[:12]}"
        if not merged.is_dir():
            trusted = self.config.train.model.trust_remote_code
            merge(found, merged, trust_remote_code=trusted)
        return merged
