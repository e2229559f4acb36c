"""Scores of one Hugging Face directory on benchmarks.

In: a model directory, benchmarks, an engine for those that have no score yet. Out: one `TaskScore`
a benchmark and, in `results_dir`, every prompt as the model saw it, every answer and every verdict:

    <benchmark>.journal  the samples so far, while it runs (see `evals.records`)
    <benchmark>.parquet  one row a sample
    <benchmark>.json     the score, and what identifies it; written last, so it marks completeness
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evals import jobs
from evals.benchmark import Benchmark, Decoding, TaskScore
from evals.files import write_json
from evals.grading.answers import grading_pool
from evals.jobs import Job
from evals.records import Journal, write_answers
from evals.serving.requests import Completion, Done, SampleKey
from evals.statistics.estimates import interval, multi_sample_metrics

if TYPE_CHECKING:
    from evals.settings import EngineSettings

Progress = Callable[[str, int, int], None]
"""Called with a benchmark's name, its finished samples, and all of its samples."""


class ModelServer(Protocol):
    """What scoring needs of an engine; `evals.serving.engine.Engine` has it."""

    settings: EngineSettings
    model_dir: Path

    def swap(self, checkpoint_dir: str | Path) -> None:
        """Serve the weights of another directory."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        stop_token_ids: Sequence[int] = (),
        seeds: Sequence[str] | None = None,
        done: Done | None = None,
        skip: Collection[SampleKey] = (),
    ) -> list[list[Completion | None]]:
        """Draw `decoding.num_samples` completions of each prompt, but for those in `skip`.

        `seeds` has a key a prompt, from which, with `decoding.seed` and the sample's number, the
        seed of each sample is derived. `done` is called with each completion as it comes.
        """


@dataclass
class _Answered:
    """All samples of a job, graded."""

    samples: dict[SampleKey, Completion]
    correct_IS: np.ndarray
    extracted: list[list[str]] | None = field(default=None)


def score(
    engine: Callable[[], ModelServer],
    settings: EngineSettings,
    model_dir: str | Path,
    benchmarks: Sequence[Benchmark],
    *,
    results_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> list[TaskScore]:
    """Score the model in `model_dir`.

    Args:
        engine: gives the running engine, which is made to serve the model; called only where there
            is something to generate, so that it can start the engine when it is first called.
        settings: of that engine.
        model_dir: a Hugging Face directory.
        benchmarks: of different names.
        results_dir: a score that it holds for the same weights, prompts and settings is returned
            from there, a new one written there; of a benchmark that was interrupted only the
            samples that are missing are generated.
        progress: told of each sample that is finished.

    Raises:
        ValueError: no tokenizer or chat template in `model_dir`, a benchmark without items, two
            of one name, a prompt that is too long, or weights that do not fit the engine.
        RuntimeError: the engine failed, or its probe did.
    """
    path = Path(model_dir).absolute()

    def serving() -> ModelServer:
        found = engine()
        same = dataclasses.replace(found.settings, num_replicas=settings.num_replicas) == settings
        assert same, "scores would be stored under other settings"
        if found.model_dir != path:
            found.swap(path)
        return found

    folder = None if results_dir is None else Path(results_dir)
    scores = []
    for job in jobs.jobs(path, benchmarks, settings):
        found = _stored(job, folder)
        if found is None:
            found = _run(serving, job, folder, progress or (lambda *_: None))
        scores.append(found)
    return scores


def _run(
    engine: Callable[[], ModelServer], job: Job, folder: Path | None, progress: Progress
) -> TaskScore:
    name = job.benchmark.name
    journal = None
    if folder is not None:
        journal = Journal(folder / f"{name}.journal", job.identity, job.ids)
    try:
        answered = _answered(engine, job, journal, progress)
    finally:
        if journal is not None:
            journal.close()
    result = _result(job, answered)
    if folder is not None and journal is not None:
        (folder / f"{name}.json").unlink(missing_ok=True)  # it would vouch for other answers
        write_answers(folder / f"{name}.parquet", _rows(job, answered))
        summary = {"identity": job.identity, "score": dataclasses.asdict(result)}
        write_json(folder / f"{name}.json", summary)
        journal.remove()
    return result


def _answered(
    engine: Callable[[], ModelServer], job: Job, journal: Journal | None, progress: Progress
) -> _Answered:
    """Every sample, graded while the next ones are generated."""
    benchmark = job.benchmark
    samples: dict[SampleKey, Completion] = {}
    with grading_pool() as pool:
        verdicts: dict[SampleKey, Future[bool]] = {}

        def take(index: int, sample: int, completion: Completion) -> None:
            samples[index, sample] = completion
            item = benchmark.items[index]
            verdicts[index, sample] = pool.submit(benchmark.grade, item, completion.text)

        _generate(engine, job, journal, take, progress)
        correct = np.array([verdicts[place].result() for place in job.places], dtype=bool)
    answered = _Answered(samples, correct.reshape(len(benchmark.items), -1))
    if benchmark.extract is not None:
        found = [benchmark.extract(benchmark.items[i], samples[i, s].text) for i, s in job.places]
        n = benchmark.decoding.num_samples
        answered.extracted = [found[start : start + n] for start in range(0, len(found), n)]
    return answered


def _generate(
    engine: Callable[[], ModelServer],
    job: Job,
    journal: Journal | None,
    take: Done,
    progress: Progress,
) -> None:
    """Give `take` every sample: those in the journal, and the rest from the engine."""
    finished = dict(journal.finished) if journal is not None else {}
    for (index, sample), completion in finished.items():
        take(index, sample, completion)
    name, total, taken = job.benchmark.name, len(job.places), set(finished)
    if len(taken) == total:
        return

    def done(index: int, sample: int, completion: Completion) -> None:
        if journal is not None:
            journal.add(index, sample, completion)
        take(index, sample, completion)
        taken.add((index, sample))
        progress(name, len(taken), total)

    serving = engine()
    progress(name, len(taken), total)
    serving.generate(
        job.prompts.token_ids,
        job.benchmark.decoding,
        stop_token_ids=job.prompts.stop_token_ids,
        seeds=job.ids,
        done=done,
        skip=frozenset(finished),
    )
    assert len(taken) == total, "the engine kept samples to itself"


def _result(job: Job, answered: _Answered) -> TaskScore:
    benchmark, drawn = job.benchmark, list(answered.samples.values())
    seed, subjects = benchmark.decoding.seed, job.subjects
    value, low, high = interval(answered.correct_IS, subjects=subjects, seed=seed)
    return TaskScore(
        task=benchmark.name,
        metric=benchmark.metric,
        value=float(value),
        low=float(low),
        high=float(high),
        num_examples=len(benchmark.items),
        settings={
            **job.identity,
            "source": benchmark.source,
            "domain": benchmark.domain,
            "mean_tokens": sum(c.num_tokens for c in drawn) / len(drawn),
            "num_truncated": sum(c.finish_reason == "length" for c in drawn),
            "num_timeouts": sum(c.finish_reason == "timeout" for c in drawn),
        },
        also=multi_sample_metrics(answered.correct_IS, answered.extracted, subjects=subjects),
    )


def _rows(job: Job, answered: _Answered) -> Iterable[dict[str, Any]]:
    subjects = job.subjects
    for i, s in job.places:
        item = job.benchmark.items[i]
        yield {
            "id": item.id,
            "sample": s,
            "subject": subjects[i] if subjects else None,
            "prompt": job.prompts.asked[i],
            "rendered": job.prompts.rendered[i],
            "answer": item.answer,
            **dataclasses.asdict(answered.samples[i, s]),
            "correct": bool(answered.correct_IS[i, s]),
            "extracted": answered.extracted[i][s] if answered.extracted is not None else None,
        }


def _stored(job: Job, folder: Path | None) -> TaskScore | None:
    if folder is None:
        return None
    path = folder / f"{job.benchmark.name}.json"
    if not (path.exists() and path.with_name(f"{job.benchmark.name}.parquet").exists()):
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return TaskScore(**summary["score"]) if summary["identity"] == job.identity else None
