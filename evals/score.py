"""Scores of one Hugging Face directory on benchmarks.

In: a model directory, benchmarks, an engine for those that have no score yet. Out: one `TaskScore`
a benchmark and, in `results_dir`, every prompt as the model saw it, every answer and every verdict:

    <benchmark>.jsonl  one line an item: id, prompt, answer, rendered, samples
    <benchmark>.json   the score, and what identifies it; written last, so it marks completeness
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evals.benchmark import Benchmark, Decoding, TaskScore
from evals.grading import grade_all
from evals.statistics import interval

if TYPE_CHECKING:
    from evals.deployment import EngineSettings
    from evals.engine import Completion


class ServesModels(Protocol):
    """What scoring needs of an engine; `evals.engine.Engine` has it."""

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
    ) -> list[list[Completion]]:
        """Draw `decoding.num_samples` completions of each prompt."""


@dataclasses.dataclass(frozen=True)
class _Job:
    benchmark: Benchmark
    rendered: list[str]
    prompts: list[list[int]]
    stop_token_ids: list[int]
    identity: dict[str, Any]  # scores with an equal one are the same scores


def score(
    engine: Callable[[], ServesModels],
    settings: EngineSettings,
    model_dir: str | Path,
    benchmarks: Sequence[Benchmark],
    *,
    results_dir: str | Path | None = None,
) -> list[TaskScore]:
    """Score the model in `model_dir`, each item as one user turn with its own chat template.

    Args:
        engine: gives the running engine, which is made to serve the model; called only where there
            is something to compute, so that it can start the engine when it is first called.
        settings: of that engine.
        model_dir: a Hugging Face directory.
        benchmarks: of different names.
        results_dir: a score that it holds for the same weights, prompts and settings is returned
            from there, a new one written there.

    Raises:
        ValueError: no tokenizer or chat template in `model_dir`, a benchmark without items, two
            of one name, or weights that do not fit the engine.
        RuntimeError: the engine failed, or its probe did.
    """
    path = Path(model_dir).absolute()
    scores = []
    for job in _jobs(path, benchmarks, settings):
        found = _stored(job, results_dir)
        if found is None:
            serving = engine()
            assert serving.settings == settings, "scores would be stored under other settings"
            if serving.model_dir != path:
                serving.swap(path)
            found = _run(serving, job, results_dir)
        scores.append(found)
    return scores


def _jobs(model_dir: Path, benchmarks: Sequence[Benchmark], settings: EngineSettings) -> list[_Job]:
    names = [benchmark.name for benchmark in benchmarks]
    if len(set(names)) < len(names):
        raise ValueError(f"two benchmarks have the same name: {sorted(names)}; rename one")
    tokenizer = _load_tokenizer(model_dir)
    stop_token_ids = _stop_token_ids(tokenizer, model_dir)
    weights = _digest(model_dir.glob("*.safetensors"))
    jobs = []
    for benchmark in benchmarks:
        if not benchmark.items:
            raise ValueError(f"benchmark {benchmark.name!r} has no items; give at least one")
        rendered = [_render(tokenizer, item.prompt) for item in benchmark.items]
        prompts = [tokenizer.encode(text, add_special_tokens=False) for text in rendered]
        asked = [
            (item.id, ids, item.answer, item.tests)
            for item, ids in zip(benchmark.items, prompts, strict=True)
        ]
        identity = {
            "weights": weights,
            "items": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
            "grade": f"{benchmark.grade.__module__}.{benchmark.grade.__qualname__}",
            "metric": benchmark.metric,
            "stop_token_ids": stop_token_ids,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            **dataclasses.asdict(benchmark.decoding),
            "stop": list(benchmark.decoding.stop),
        }
        jobs.append(_Job(benchmark, rendered, prompts, stop_token_ids, identity))
    return jobs


def _run(engine: ServesModels, job: _Job, results_dir: str | Path | None) -> TaskScore:
    benchmark = job.benchmark
    completions = engine.generate(
        job.prompts, benchmark.decoding, stop_token_ids=job.stop_token_ids
    )
    answers = [
        (item, completion.text)
        for item, samples in zip(benchmark.items, completions, strict=True)
        for completion in samples
    ]
    correct = np.array(grade_all(benchmark, answers), dtype=bool)
    correct_IS = correct.reshape(len(benchmark.items), -1)  # items, samples
    value, low, high = interval(correct_IS, seed=benchmark.decoding.seed)
    drawn = [completion for samples in completions for completion in samples]
    result = TaskScore(
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
            "num_prompts_too_long": sum(c.finish_reason == "prompt_too_long" for c in drawn),
        },
    )
    if results_dir is not None:
        _store(Path(results_dir), job, result, completions, correct_IS)
    return result


def _store(
    folder: Path,
    job: _Job,
    result: TaskScore,
    completions: list[list[Completion]],
    correct_IS: np.ndarray,
) -> None:
    lines = []
    for item, text, samples, verdicts in zip(
        job.benchmark.items, job.rendered, completions, correct_IS.tolist(), strict=True
    ):
        line = {
            "id": item.id,
            "prompt": item.prompt,
            "answer": item.answer,
            "rendered": text,
            "samples": [
                {**dataclasses.asdict(sample), "correct": verdict}
                for sample, verdict in zip(samples, verdicts, strict=True)
            ],
        }
        lines.append(json.dumps(line, ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{result.task}.jsonl", "".join(line + "\n" for line in lines))
    summary = {"identity": job.identity, "score": dataclasses.asdict(result)}
    _write(folder / f"{result.task}.json", json.dumps(summary, indent=2) + "\n")


def _stored(job: _Job, results_dir: str | Path | None) -> TaskScore | None:
    if results_dir is None:
        return None
    path = Path(results_dir) / f"{job.benchmark.name}.json"
    if not path.exists():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return TaskScore(**summary["score"]) if summary["identity"] == job.identity else None


def _write(path: Path, text: str) -> None:
    """Write all or nothing."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _load_tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(os.fspath(model_dir), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_dir} holds no tokenizer that can be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer in {model_dir} has no chat template; "
            "add a chat_template.jinja, so that prompts are asked as the model was trained"
        )
    return tokenizer


def _render(tokenizer: Any, prompt: str) -> str:
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def _stop_token_ids(tokenizer: Any, model_dir: Path) -> list[int]:
    """Tokens that end an answer.

    The tokenizer's and the generation config's end-of-sequence tokens, and the token with which
    the chat template closes a turn: base models with a chat template often end sequences with
    another token than turns.
    """
    ids = {tokenizer.eos_token_id}
    generation_config = model_dir / "generation_config.json"
    if generation_config.exists():
        listed = json.loads(generation_config.read_text(encoding="utf-8")).get("eos_token_id")
        ids.update(listed if isinstance(listed, list) else [listed])
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}]
    tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition("ANSWER")[2]
    closing = tokenizer.encode(tail, add_special_tokens=False)[:1]
    ids.update(token for token in closing if token in tokenizer.added_tokens_decoder)
    return sorted(ids - {None})


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
