"""Score checkpoints while their trials train, so that the search decides by answers.

Trials run in processes of their own and the engine belongs to this one. So a trial puts its request
into a queue, the actor `_Requests`, and waits; a thread of this process serves one request after
another. The engine starts before the first trial, which then gets what is left of the cluster.
Answers and scores are stored in `<run>/judged`; those of the same weights and items are reused.
"""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from evals.benchmark import Benchmark, TaskScore
from evals.statistics import standard_error
from otr.training.worker import stop_requested
from pipelines.runtime import console
from pipelines.stages.score import Scorer
from tuning.settings import ANSWERS, STANDARD_ERROR
from tuning.space import Trial
from tuning.trial import DRIVER_RESOURCES

FOLDER = "judged"
"""Directory below the run's for the answers that the search decides by."""
_BASE = "base"  # the base model's directory there
_LOOK_SECONDS = 1.0  # between two looks for the stop file


class _Request(NamedTuple):
    """A checkpoint to be scored."""

    number: int
    trial: str
    step: int
    path: str


class _Requests:
    """An actor between the trials and the process that has the engine."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue()
        self._answers: list[asyncio.Future[dict[str, float] | str]] = []

    async def ask(self, trial: str, step: int, path: str) -> dict[str, float] | str:
        """Return the scores of a checkpoint, or why there are none."""
        future = asyncio.get_running_loop().create_future()
        self._answers.append(future)
        await self._queue.put(_Request(len(self._answers) - 1, trial, step, path))
        return await future

    async def next(self) -> _Request | None:
        """Return the next request; None once the queue is closed."""
        return await self._queue.get()

    async def answer(self, number: int, answer: dict[str, float] | str) -> None:
        """Answer a request."""
        self._answers[number].set_result(answer)

    async def close(self) -> None:
        """End the thread that serves requests, after those that wait."""
        await self._queue.put(None)


@dataclass(frozen=True)
class RemoteJudge:
    """The judge that trials get (see `tuning.judge`)."""

    requests: Any
    """The actor `_Requests`."""
    stop_file: str

    def __call__(self, trial: str, step: int, path: str) -> dict[str, float]:
        """Return the scores of a checkpoint.

        Raises:
            RuntimeError: there are none. The message says why.
        """
        asked = self.requests.ask.remote(trial, step, path)
        while not ray.wait([asked], timeout=_LOOK_SECONDS)[0]:
            if stop_requested(self.stop_file):
                raise RuntimeError("the run stops; it is scored when the run continues")
        answer = ray.get(asked)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return dict(answer)


class JudgeTrials(Callback):
    """A Ray Tune callback with the thread that serves trials; a context manager around training.

    Args:
        score: returns the score of a checkpoint, given the trial's name, the step and the path.
        stop_file: once this file exists, trials do not wait for a score any longer.
    """

    def __init__(self, score: Callable[[str, int, Path], TaskScore], stop_file: str) -> None:
        self._score, self._ended = score, set[str]()
        actor: Any = ray.remote(_Requests).options(num_cpus=0, resources=DRIVER_RESOURCES)
        self._requests = actor.remote()
        self.judge = RemoteJudge(self._requests, stop_file)
        self._thread = Thread(target=self._serve, name="judge trials", daemon=True)

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Leave out the last request of a trial that the scheduler stopped."""
        self._ended.add(Trial(**trial.config["trial"]).name)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Leave out the requests of a trial that failed."""
        self.on_trial_complete(iteration, trials, trial)

    def __enter__(self) -> "JudgeTrials":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread after the requests that wait; nobody reads their answers."""
        self._requests.close.remote()

    def _serve(self) -> None:
        try:
            while (request := ray.get(self._requests.next.remote())) is not None:
                self._requests.answer.remote(request.number, self._answer(request))
        except ray.exceptions.RayError:  # Ray has ended, and the trials with it
            return

    def _answer(self, request: _Request) -> dict[str, float] | str:
        if request.trial in self._ended:
            return "the trial has ended"
        try:
            score = self._score(request.trial, request.step, Path(request.path))
        except Exception as error:  # it must not end the trial
            return f"{type(error).__name__}: {error}"
        return {ANSWERS: score.value, STANDARD_ERROR: standard_error(score.low, score.high)}


@contextmanager
def judging(
    scorer: Scorer, benchmark: Benchmark | None, base: Path, stop_file: Path
) -> Iterator[JudgeTrials | None]:
    """Serve trials while the body runs; None without a benchmark.

    The engine starts, and answers as the base model, before the body runs.

    Raises:
        ValueError, RuntimeError: the engine does not start; see `evals.score.score`.
    """
    if benchmark is None:
        yield None
        return

    def score(trial: str, step: int, path: Path) -> TaskScore:
        try:
            name = f"{trial}/step-{step:06d}"
            return scorer.score(name, path, benchmarks=[benchmark], folder=FOLDER)[0]
        finally:  # an adapter's merged weights are as large as the model
            shutil.rmtree(scorer.directory / "merged" / trial, ignore_errors=True)

    with console.stage("judge", "starting vLLM") as stage:
        scorer.check_served(_BASE, base)  # otherwise trials could take what the engine needs
        before = score(_BASE, 0, base)
        stage.say(f"{benchmark.name}: the base model answers {before.value:.1%} right")
    with JudgeTrials(score, str(stop_file)) as trials:
        yield trials
