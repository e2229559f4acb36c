"""Score models on benchmarks with one engine, which starts when it is first needed.

Answers and scores are stored in `<run>/scores/<name>`. Those of the same weights and items are
reused, so an interrupted run loses only unfinished requests. Ray must be running.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

from evals.benchmark import Benchmark, TaskScore
from evals.files import digest
from evals.score import Progress, score
from evals.serving import adapters
from evals.serving.requests import ServedModel
from evals.settings import EngineSettings
from pipelines.runtime import console
from pipelines.stages.merge import merge

if TYPE_CHECKING:
    from evals.serving.engine import Engine


class Scorer:
    """Scores models of one architecture; a context manager that stops the engine at its end.

    Several threads may use it; they are served one at a time.
    """

    def __init__(
        self, benchmarks: Sequence[Benchmark], engine: EngineSettings, directory: Path
    ) -> None:
        """Prepare to score.

        Args:
            benchmarks: the benchmarks to score every model on.
            engine: settings of the engine.
            directory: the run's directory.
        """
        self.benchmarks, self.directory = benchmarks, directory
        self.on_start: Callable[[], None] = lambda: None
        """Called before the engine starts."""
        self.settings = replace(engine, log_dir=str(directory / "logs" / "engine"))
        self._lock = RLock()
        self._engine: Engine | None = None
        self._base: Path | None = None
        self._adapters: list[Path] = []  # served together with their base model
        self._owns_engine = self._closed = False

    def serve_adapters(self, models: Mapping[str, Path]) -> None:
        """Serve all models with one copy of the base weights, if that is possible.

        It is possible if the first model is the base of all others, and the others are LoRA
        adapters that vLLM supports. Otherwise each adapter is merged into its base model, and the
        engine's weights are swapped. No effect once the engine runs.
        """
        base, *others = models.values()
        all_adapters = all((path / adapters.CONFIG_FILE).is_file() for path in others)
        few = 0 < len(others) <= adapters.MAX_ADAPTERS
        if self._engine is not None or not all_adapters or not few:
            return
        try:
            adapters.check_all(others, base)
        except ValueError:
            return
        self._base, self._adapters = base, others

    def score(
        self,
        name: str,
        model: Path,
        progress: Progress | None = None,
        *,
        benchmarks: Sequence[Benchmark] | None = None,
        folder: str = "scores",
    ) -> list[TaskScore]:
        """Score a model directory.

        Args:
            name: directory below `<run>/<folder>` for the answers.
            model: Hugging Face directory, or a LoRA adapter.
            progress: see `evals.score.score`.
            benchmarks: by default the scorer's.
            folder: directory below the run's.

        Raises:
            ValueError, RuntimeError: see `evals.score.score`.
        """
        with self._lock:
            directory = self._servable(name, model)
            return score(
                lambda: self._served(directory),
                self.settings,
                directory,
                self.benchmarks if benchmarks is None else benchmarks,
                results_dir=self.directory / folder / name,
                progress=progress,
            )

    def check_served(self, name: str, model: Path) -> None:
        """Check that the engine predicts the same as transformers from a model directory.

        Raises:
            ValueError, RuntimeError: see `evals.serving.engine.Engine.start`.
        """
        with self._lock:
            self._served(self._servable(name, model))  # starting the engine includes the check

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        # Without the lock, so that this also ends what another thread generates or starts.
        if self._owns_engine:
            from evals.serving import deployment

            deployment.shut_down()

    def _served(self, model_dir: Path) -> ServedModel:
        """Return the engine, or the adapter in it, that serves a directory."""
        assert not self._closed, "the scorer is closed"
        if self._engine is None:
            from evals.serving.engine import Engine  # importing Ray Serve takes over a second

            self._owns_engine = True
            self.on_start()
            try:
                self._engine = Engine.start(
                    self._base or model_dir, settings=self.settings, adapter_dirs=self._adapters
                )
            except BaseException:
                # It has shut down what it started; a Serve that ran before is not ours to stop.
                self._owns_engine = False
                raise
        if model_dir in self._adapters:
            return self._engine.adapter(model_dir)
        return self._engine

    def _servable(self, name: str, model: Path) -> Path:
        """Return a directory that can be served; merge an adapter into its base model, once."""
        if model in self._adapters or not (model / adapters.CONFIG_FILE).is_file():
            return model
        version = digest(model.glob("adapter_*"))[:12]  # the directory may get another adapter
        merged = self.directory / "merged" / f"{name}-{version}"
        if not merged.is_dir():
            merge(model, merged, dtype="float32")  # nothing of the adapter is rounded away
        return merged


def score_models(
    models: Mapping[str, Path],
    scorer: Scorer,
    on_scored: Callable[[str, list[TaskScore]], None] = lambda *_: None,
) -> dict[str, list[TaskScore]]:
    """Score model directories of one architecture on all benchmarks, with one engine.

    Args:
        models: name to Hugging Face directory; the first one is the base model of any adapters.
        scorer: scores that it has stored already are reused; if all are, no engine starts.
        on_scored: called with the name and scores of each model.
    """
    scores: dict[str, list[TaskScore]] = {}
    scorer.serve_adapters(models)
    with console.stage("score") as stage:

        def say(name: str, detail: str) -> None:
            stage.say(f"{len(scores)} of {len(models)} models scored · {name}{detail}")

        def progress(name: str, benchmark: str, finished: int, total: int) -> None:
            say(name, f", {benchmark}: {finished} of {total} answers")

        for name, path in models.items():
            say(name, "")
            scorer.on_start = partial(say, name, ": starting vLLM")
            scores[name] = scorer.score(name, path, partial(progress, name))
            on_scored(name, scores[name])
        stage.say(f"{len(scores)} models on {len(scorer.benchmarks)} benchmarks")
        return scores
