"""Scores of one Hugging Face directory on benchmarks.

With a `results_dir`, each benchmark leaves there

    <benchmark>.journal  the samples so far, while it runs
    <benchmark>.parquet  one row per sample (see `evals.records` for both)
    <benchmark>.json     the score and its identity; written last, so it marks completeness
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.benchmark import Benchmark, Item, TaskScore
from evals.files import write_json
from evals.grading.answers import grading_pool
from evals.grading.thoughts import after_thinking, is_unfinished_thought, with_opening_mark
from evals.jobs import Job, make_jobs
from evals.records import Journal, read_answers, write_answers
from evals.repetition import ends_in_loop
from evals.serving.requests import Completion, OnCompletion, SampleKey, ServedModel
from evals.statistics.estimates import interval, multi_sample_metrics

if TYPE_CHECKING:
    from evals.settings import EngineSettings

Progress = Callable[[str, int, int], None]
"""Called with a benchmark's name, the number of its finished samples, and of all its samples."""


@dataclass(frozen=True)
class _GradedSamples:
    """All samples of a job; I: items, S: samples per item."""

    completions: dict[SampleKey, Completion]
    correct_IS: np.ndarray
    extracted_IS: list[list[str]] | None
    num_unfinished_thoughts: int
    num_as_text: int


def score(
    engine: Callable[[], ServedModel],
    settings: EngineSettings,
    model_dir: str | Path,
    benchmarks: Sequence[Benchmark],
    *,
    results_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> list[TaskScore]:
    """Score the model in `model_dir`.

    Args:
        engine: returns the running engine, which is then swapped to `model_dir` if it serves
            another model. Called only if something has to be generated, so it can start the engine.
        settings: settings of that engine. If they leave the data type open, the engine is asked.
        model_dir: a Hugging Face directory.
        benchmarks: benchmarks with different names.
        results_dir: where scores are stored. A stored score for the same weights, prompts and
            settings is returned; an interrupted benchmark generates only the missing samples.
        progress: called for each finished sample.

    Returns:
        One score per benchmark, in order.

    Raises:
        ValueError: as `evals.jobs.make_jobs`, or the weights do not fit the engine.
        RuntimeError: the engine failed, or does not serve the weights in `model_dir`.
    """
    path = Path(model_dir).absolute()
    if settings.dtype == "auto":
        settings = engine().settings

    def serving() -> ServedModel:
        served = engine()
        for name in ("dtype", "max_model_len"):
            same = getattr(served.settings, name) == getattr(settings, name)
            assert same, f"scores would be stored under another {name}"
        if served.model_dir != path:
            served.swap(path)
        return served

    folder = None if results_dir is None else Path(results_dir)
    scores = []
    for job in make_jobs(path, benchmarks, settings):
        found = _stored_score(job, folder)
        if found is None:
            found = _score_job(serving, job, folder, progress or (lambda *_: None))
        scores.append(found)
    return scores


def _stored_score(job: Job, folder: Path | None) -> TaskScore | None:
    """Return the stored score of a job, if there is one with an equal identity."""
    if folder is None:
        return None
    summary = _summary(job, folder)
    return TaskScore(**summary["score"]) if summary.get("identity") == job.identity else None


def _stored_answers(job: Job, folder: Path) -> dict[SampleKey, Completion]:
    """Return the stored answers if they are those that the job would generate."""
    if _summary(job, folder).get("generation") != job.generation:
        return {}
    try:
        rows = read_answers(folder / f"{job.benchmark.name}.parquet")
    except ValueError:  # damaged: they are generated again
        return {}
    answers = (Completion(row["text"], row["finish_reason"], row["num_tokens"]) for row in rows)
    return dict(zip(job.sample_keys, answers, strict=True))


def _summary(job: Job, folder: Path) -> dict[str, Any]:
    """Return the content of the file of a finished score; {} if there is none."""
    path = folder / f"{job.benchmark.name}.json"
    if not (path.exists() and path.with_name(f"{job.benchmark.name}.parquet").exists()):
        return {}
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _score_job(
    engine: Callable[[], ServedModel], job: Job, folder: Path | None, progress: Progress
) -> TaskScore:
    """Generate and grade all samples; store answers and score in `folder`, if given."""
    if folder is None:
        return _task_score(job, _graded_samples(engine, job, None, progress))
    name = job.benchmark.name
    journal = Journal(folder / f"{name}.journal", job.generation, job.item_ids)
    for key, completion in _stored_answers(job, folder).items():
        if key not in journal.finished:
            journal.add(key, completion)
    try:
        graded = _graded_samples(engine, job, journal, progress)
    finally:
        journal.close()
    result = _task_score(job, graded)
    # An older score would belong to other answers while the new ones are written.
    (folder / f"{name}.json").unlink(missing_ok=True)
    write_answers(folder / f"{name}.parquet", _rows(job, graded))
    summary = {
        "identity": job.identity,
        "generation": job.generation,
        "score": dataclasses.asdict(result),
    }
    write_json(folder / f"{name}.json", summary)
    journal.delete()
    return result


def _grade(benchmark: Benchmark, item: Item, answer: str) -> bool:
    """Return the verdict on an answer; an error of a grader names the item."""
    try:
        return benchmark.grade(item, answer)
    except Exception as error:
        raise ValueError(
            f"{benchmark.name}: the grader fails on an answer to item {item.id!r} ({error!r}); "
            "answers are stored, and are not generated again"
        ) from error


def _graded_samples(
    engine: Callable[[], ServedModel], job: Job, journal: Journal | None, progress: Progress
) -> _GradedSamples:
    """Generate all samples; grade each while the next ones are generated."""
    benchmark = job.benchmark
    completions: dict[SampleKey, Completion] = {}
    with grading_pool() as pool:
        verdicts: dict[SampleKey, Future[bool]] = {}

        def grade(key: SampleKey, completion: Completion) -> None:
            completions[key] = completion
            item, text = benchmark.items[key.item], written_text(key)
            verdicts[key] = pool.submit(_grade, benchmark, item, after_thinking(text))

        def written_text(key: SampleKey) -> str:
            return with_opening_mark(job.prompts.rendered[key.item], completions[key].text)

        _generate(engine, job, journal, grade, progress)
        correct = np.array([verdicts[key].result() for key in job.sample_keys], dtype=bool)
    texts = {key: written_text(key) for key in job.sample_keys}
    answers = {key: after_thinking(text) for key, text in texts.items()}
    extracted = None
    if benchmark.extract is not None:
        samples = range(benchmark.decoding.num_samples)
        extracted = [
            [benchmark.extract(item, answers[SampleKey(i, s)]) for s in samples]
            for i, item in enumerate(benchmark.items)
        ]
    as_text = 0
    if benchmark.as_text is not None:
        as_text = sum(benchmark.as_text(benchmark.items[k.item], answers[k]) for k in answers)
    return _GradedSamples(
        completions,
        correct.reshape(len(benchmark.items), -1),
        extracted,
        num_unfinished_thoughts=sum(map(is_unfinished_thought, texts.values())),
        num_as_text=as_text,
    )


def _generate(
    engine: Callable[[], ServedModel],
    job: Job,
    journal: Journal | None,
    on_completion: OnCompletion,
    progress: Progress,
) -> None:
    """Call `on_completion` with every sample: those in the journal, then the generated ones."""
    finished = journal.finished if journal is not None else {}
    for key, completion in finished.items():
        on_completion(key, completion)
    name, total, received = job.benchmark.name, len(job.sample_keys), set(finished)
    if len(received) == total:
        return

    def receive(key: SampleKey, completion: Completion) -> None:
        if journal is not None:
            journal.add(key, completion)
        on_completion(key, completion)
        received.add(key)
        progress(name, len(received), total)

    served = engine()
    progress(name, len(received), total)
    served.generate(
        job.prompts.token_ids,
        job.benchmark.decoding,
        stop_token_ids=job.prompts.stop_token_ids,
        seeds=job.item_ids,
        on_completion=receive,
        skip=frozenset(finished),
    )
    assert len(received) == total, "the engine did not return every sample"


def _task_score(job: Job, graded: _GradedSamples) -> TaskScore:
    benchmark, completions = job.benchmark, list(graded.completions.values())
    seed, subjects = benchmark.decoding.seed, job.subjects
    value, low, high = interval(graded.correct_IS, subjects=subjects, seed=seed)
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
            "mean_tokens": sum(c.num_tokens for c in completions) / len(completions),
            "num_truncated": sum(c.finish_reason == "length" for c in completions),
            "num_repeating": sum(
                c.finish_reason == "length" and ends_in_loop(c.text) for c in completions
            ),
            "num_timeouts": sum(c.finish_reason == "timeout" for c in completions),
            "num_unfinished_thoughts": graded.num_unfinished_thoughts,
            "num_as_text": graded.num_as_text,
        },
        also=multi_sample_metrics(graded.correct_IS, graded.extracted_IS, subjects=subjects),
    )


def _rows(job: Job, graded: _GradedSamples) -> Iterable[dict[str, Any]]:
    """Yield one row of `evals.records.SCHEMA` per sample."""
    subjects = job.subjects
    for key in job.sample_keys:
        i, s = key
        item = job.benchmark.items[i]
        yield {
            "id": item.id,
            "sample": s,
            "subject": subjects[i] if subjects else None,
            "prompt": job.prompts.texts[i],
            "rendered": job.prompts.rendered[i],
            "answer": item.answer,
            **dataclasses.asdict(graded.completions[key]),
            "correct": bool(graded.correct_IS[i, s]),
            "extracted": graded.extracted_IS[i][s] if graded.extracted_IS is not None else None,
        }
