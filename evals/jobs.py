"""Jobs: one benchmark on one model, with its prompts and the identity of its score."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals import prompts
from evals.benchmark import Benchmark
from evals.files import digest
from evals.prompts import Prompts
from evals.serving.requests import SampleKey

if TYPE_CHECKING:
    from evals.settings import EngineSettings

# Modules by the name they had when the first scores were stored. The identity of a score contains
# the names of its rules: without this table, moving a module would discard all stored scores.
_STORED_MODULE_NAMES = {
    "evals.grading.answers": "evals.grading",
    "evals.grading.published": "evals.published",
}

RULES_VERSION = 4
"""To be raised whenever graders of `evals` change their verdicts: stored answers are then graded
again."""


@dataclass(frozen=True)
class Job:
    """One benchmark to be scored on one model.

    Attributes:
        benchmark: the benchmark.
        prompts: its prompts for this model.
        identity: everything that the score depends on. A stored score with an equal identity is
            reused.
        generation: everything that the answers depend on. Stored answers with an equal one are
            graded again, and not generated again.
    """

    benchmark: Benchmark
    prompts: Prompts
    identity: dict[str, Any]
    generation: dict[str, Any]

    @property
    def sample_keys(self) -> list[SampleKey]:
        """Keys of all samples of all items, in order."""
        samples = range(self.benchmark.decoding.num_samples)
        return [SampleKey(i, s) for i in range(len(self.benchmark.items)) for s in samples]

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items, in order."""
        return [item.id for item in self.benchmark.items]

    @property
    def subjects(self) -> list[str]:
        """Subjects of the items, in order; empty unless scores are averaged by subject."""
        if self.benchmark.average == "items":
            return []
        return [str(item.meta["subject"]) for item in self.benchmark.items]


def make_jobs(
    model_dir: Path, benchmarks: Sequence[Benchmark], settings: EngineSettings
) -> list[Job]:
    """Make one job per benchmark for the model in `model_dir`.

    Raises:
        ValueError: as `prompts.make_prompts`, or two benchmarks have the same name.
    """
    prompts.check_names(benchmarks)
    tokenizer = prompts.load_tokenizer(model_dir)
    weights = digest(_weight_files(model_dir))
    jobs = []
    for benchmark in benchmarks:
        made = prompts.make_prompts(tokenizer, model_dir, benchmark, settings)
        asked = [*zip(benchmark.items, made.token_ids, strict=True)]
        generation = {
            "weights": weights,
            "prompts": _digest([(item.id, ids) for item, ids in asked]),
            "stop_token_ids": made.stop_token_ids,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            **dataclasses.asdict(benchmark.decoding),
            "stop": list(benchmark.decoding.stop),
        }
        graded = [(item.id, ids, item.answer, item.tests, item.meta) for item, ids in asked]
        identity = {
            "items": _digest(graded),
            "grade": _rule_id(benchmark.grade),
            "extract": _rule_id(benchmark.extract),
            "rules": RULES_VERSION,
            "metric": benchmark.metric,
            "average": benchmark.average,
            "style": benchmark.style,
            **{key: value for key, value in generation.items() if key != "prompts"},
        }
        if benchmark.thinking is not None:  # not always: stored scores have no such key
            identity["thinking"] = benchmark.thinking
        jobs.append(Job(benchmark, made, identity, generation))
    return jobs


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


def _rule_id(function: Callable[..., Any] | None) -> str | None:
    """Return the dotted name of a grading or extraction rule.

    The rule of a user's own benchmark may change between runs, so the digest of its file is added.
    """
    if function is None:
        return None
    module = function.__module__
    name = f"{_STORED_MODULE_NAMES.get(module, module)}.{function.__qualname__}"
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.partition(".")[0] == "evals":
        return name
    return f"{name} {digest([Path(file)])[:12]}"


def _weight_files(model_dir: Path) -> list[Path]:
    """Return the files that define a model; for an adapter, also the weights of its base model."""
    config = model_dir / "adapter_config.json"
    files = [*model_dir.glob("*.safetensors")]
    files += [path for path in (model_dir / "config.json", config) if path.is_file()]
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        files += Path(base).glob("*.safetensors") if Path(base).is_dir() else []
    return files
