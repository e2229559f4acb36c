"""What is to be scored: a benchmark with its prompts, and what tells its scores from others.

In: a model directory, benchmarks, the engine's settings. Out: a `Job` a benchmark.
"""

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

HARMONIC = "harmonic over subjects"


@dataclass(frozen=True)
class Job:
    """One benchmark on one model."""

    benchmark: Benchmark
    prompts: Prompts
    identity: dict[str, Any]
    """Scores with an equal one are the same scores."""

    @property
    def places(self) -> list[SampleKey]:
        """Every sample of every item, in order."""
        samples = self.benchmark.decoding.num_samples
        return [(i, s) for i in range(len(self.benchmark.items)) for s in range(samples)]

    @property
    def ids(self) -> list[str]:
        """Of the items."""
        return [item.id for item in self.benchmark.items]

    @property
    def subjects(self) -> list[str]:
        """Of the items, where they are averaged by subject."""
        if self.benchmark.average != HARMONIC:
            return []
        return [str(item.meta["subject"]) for item in self.benchmark.items]


def jobs(model_dir: Path, benchmarks: Sequence[Benchmark], settings: EngineSettings) -> list[Job]:
    """The jobs of a model.

    Raises:
        ValueError: what `prompts.check` finds.
    """
    prompts.check_names(benchmarks)
    tokenizer = prompts.load_tokenizer(model_dir)
    weights = digest(_weights(model_dir))
    made = []
    for benchmark in benchmarks:
        asked = prompts.make(tokenizer, model_dir, benchmark, settings)
        graded = [
            (item.id, ids, item.answer, item.tests, item.meta)
            for item, ids in zip(benchmark.items, asked.token_ids, strict=True)
        ]
        identity = {
            "weights": weights,
            "items": hashlib.sha256(json.dumps(graded, default=str).encode()).hexdigest(),
            "grade": _name(benchmark.grade),
            "extract": _name(benchmark.extract),
            "metric": benchmark.metric,
            "average": benchmark.average,
            "style": benchmark.style,
            "stop_token_ids": asked.stop_token_ids,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            **dataclasses.asdict(benchmark.decoding),
            "stop": list(benchmark.decoding.stop),
        }
        made.append(Job(benchmark, asked, identity))
    return made


def _name(function: Callable[..., Any] | None) -> str | None:
    """Of a rule of this package; of one's own also what its file holds, which may change."""
    if function is None:
        return None
    name = f"{function.__module__}.{function.__qualname__}"
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    if file is None or function.__module__.partition(".")[0] == "evals":
        return name
    return f"{name} {digest([Path(file)])[:12]}"


def _weights(model_dir: Path) -> list[Path]:
    """What a model is made of; of an adapter also the weights of the model that it belongs to."""
    config = model_dir / "adapter_config.json"
    files = [*model_dir.glob("*.safetensors")]
    files += [path for path in (model_dir / "config.json", config) if path.is_file()]
    if config.exists():
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        files += Path(base).glob("*.safetensors") if Path(base).is_dir() else []
    return files
