"""Parts of the scoring benchmark: the warm engine compared with vLLM's own offline engine.

Each part is a function that returns a dictionary of seconds and tokens. Contenders take turns in
one run, on the built-in model and benchmarks.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray
from safetensors.torch import load_file, save_file

from evals.benchmark import Benchmark, Item
from evals.grading.answers import grade_all
from evals.jobs import make_jobs
from evals.score import score
from evals.serving.engine import Engine
from evals.settings import EngineSettings, free_port
from pipelines.builtin import corpus
from tests.assets.newcomer import REPOSITORY
from tests.benchmarks import evals_harness
from tests.benchmarks.evals_peer import generate_all, load_benchmarks

Report = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A warm engine on the first of some checkpoints, and the benchmarks to run."""

    engine: Engine
    checkpoints: list[Path]
    files: list[str]
    max_items: int

    def peer(self, role: str, checkpoint: Path) -> subprocess.Popen[str]:
        """Start vLLM's offline engine with our settings, in its own process."""
        settings = json.dumps(asdict(self.engine.settings))
        words = [role, settings, str(checkpoint), str(self.max_items), *self.files]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.evals_peer", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
        )


@contextmanager
def scene(max_items: int, names: tuple[str, ...] = corpus.BENCHMARKS) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        base = Path(corpus.resolve_path("builtin:base", folder))
        checkpoints = [_copy(base, folder / f"checkpoint-{n}", 1 - 1e-3 * n) for n in range(4)]
        files = [corpus.resolve_path(f"builtin:{name}", folder) for name in names]
        settings = EngineSettings(
            dtype="float32",
            threads=1,
            kv_cache_gib=1.0,
            port=free_port(),
            max_model_len=1024,
            log_dir=str(folder / "logs"),
        )
        ray.init(
            address="local",
            num_cpus=2,
            log_to_driver=False,
            logging_level="ERROR",
            # By default Ray runs the engine at a lower priority than the other contender has.
            _system_config={"worker_niceness": 0},
        )
        try:
            with Engine.start(checkpoints[0], settings=settings) as engine:
                yield Scene(engine, checkpoints, files, max_items)
        finally:
            ray.shutdown()


def _copy(base: Path, directory: Path, scale: float) -> Path:
    """Copy a model with scaled weights, as another checkpoint of it."""
    shutil.copytree(base, directory)
    weights = load_file(directory / "model.safetensors")
    scaled = {name: weight * scale for name, weight in weights.items()}
    save_file(scaled, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def swap(on: Scene, rounds: int) -> Report:
    """Measure seconds per swap, including its verification."""
    taken = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        on.engine.swap(on.checkpoints[(number + 1) % len(on.checkpoints)])
        taken.append(time.perf_counter() - start)
    return {"first_s": taken[0], "seconds": taken[1:], "median_s": median(taken[1:])}


def throughput(on: Scene, rounds: int) -> Report:
    """Measure generated tokens per second, ours and vLLM's in turns, after a warm-up turn."""
    model = on.checkpoints[0]
    on.engine.swap(model)
    benchmarks = load_benchmarks(on.files, on.max_items)
    ours, theirs = [], []
    with on.peer("generate", model) as peer:
        assert peer.stdin is not None and peer.stdout is not None
        assert peer.stdout.readline(), "vLLM's offline engine did not start"
        for _ in range(rounds + 1):
            ours.append(generate_all(on.engine, model, benchmarks))
            print("go", file=peer.stdin, flush=True)
            theirs.append(json.loads(peer.stdout.readline()))
        peer.stdin.close()
    if {turn["tokens"] for turn in ours} != {turn["tokens"] for turn in theirs}:
        raise RuntimeError(f"unequal work: {ours[0]} and {theirs[0]}")
    speeds = {
        name: [turn["tokens"] / turn["seconds"] for turn in turns[1:]]
        for name, turns in (("engine", ours), ("offline", theirs))
    }
    ratios = [a / b for a, b in zip(speeds["engine"], speeds["offline"], strict=True)]
    return {"tokens": ours[0]["tokens"], "tokens_per_second": speeds, "ratio": median(ratios)}


def checkpoints(on: Scene, rounds: int) -> Report:
    """Measure seconds to score checkpoints 2..n on the warm engine, and each with its own vLLM."""
    engine, warm, fresh = on.engine, [], []
    for checkpoint in on.checkpoints[1 : 1 + rounds]:
        start = time.perf_counter()
        benchmarks = load_benchmarks(on.files, on.max_items)
        scores = score(lambda: engine, engine.settings, checkpoint, benchmarks)
        warm.append(time.perf_counter() - start)
        start = time.perf_counter()
        found, _ = on.peer("score", checkpoint).communicate()
        fresh.append(time.perf_counter() - start)
        if json.loads(found) != {one.task: one.value for one in scores}:
            raise RuntimeError(f"other scores: {found} and {scores}")
    return {"warm_s": warm, "fresh_s": fresh, "ratio": sum(warm) / sum(fresh)}


def grading(on: Scene, rounds: int) -> Report:
    """Measure seconds to generate all answers, to grade them afterwards, and to do both at once.

    The first round is a warm-up.
    """
    generated, graded, both = [], [], []
    benchmarks = load_benchmarks(on.files, on.max_items)
    for _ in range(rounds + 1):
        start = time.perf_counter()
        answers = _answers(on, benchmarks)
        generated.append(time.perf_counter() - start)
        start = time.perf_counter()
        for benchmark in benchmarks:
            grade_all(benchmark, answers[benchmark.name])
        graded.append(time.perf_counter() - start)
        start = time.perf_counter()
        score(lambda: on.engine, on.engine.settings, on.engine.model_dir, benchmarks)
        both.append(time.perf_counter() - start)
    ratio = sum(graded[1:]) / sum(generated[1:])
    added = sum(both[1:]) / sum(generated[1:]) - 1
    seconds = {"generate_s": generated[1:], "grade_s": graded[1:], "score_s": both[1:]}
    return seconds | {"ratio": ratio, "added": added}


def _answers(on: Scene, benchmarks: list[Benchmark]) -> dict[str, list[tuple[Item, str]]]:
    answers = {}
    for job in make_jobs(on.engine.model_dir, benchmarks, on.engine.settings):
        found = on.engine.generate(
            job.prompts.token_ids,
            job.benchmark.decoding,
            stop_token_ids=job.prompts.stop_token_ids,
            seeds=job.item_ids,
        )
        answers[job.benchmark.name] = [
            (item, sample.text)
            for item, samples in zip(job.benchmark.items, found, strict=True)
            for sample in samples
            if sample is not None
        ]
    return answers


def harness(on: Scene, rounds: int) -> Report:
    """Count items of the first benchmark on which lm-evaluation-harness differs."""
    if not evals_harness.installed():
        return {"skipped": evals_harness.MISSING}
    on.engine.swap(on.checkpoints[0])
    return evals_harness.compare(on.engine, on.checkpoints[0], on.files[0], on.max_items)
