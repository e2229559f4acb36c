"""Figures of a simulated sweep: time and CPU of its parts, memory, MLflow, files."""

import contextlib
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import psutil
from mlflow import MlflowClient

import tuning.sweep
from pipelines import full_sweep
from pipelines.config.presets import SweepConfig
from pipelines.report import differences, terminal
from pipelines.report import page as report
from pipelines.stages.score import Scorer
from pipelines.tracking.delivery import Delivery
from pipelines.tracking.mlflow_store import EXPERIMENT
from pipelines.tracking.tracker import Tracker
from tests.benchmarks.scale_trial import PROCESS_CPU, REPORT_SECONDS

MIB = 2**20
PAGE = 100  # runs on a page of MLflow's UI
_ASKED = 10  # times each query is made
_PARTS: dict[str, tuple[Any, str]] = {
    "whole": (full_sweep, "sweep"),
    "train": (tuning.sweep, "run"),
    "score": (Scorer, "score"),
    "differences": (differences, "with_differences"),
    "report": (report, "write"),
    "summary": (terminal, "print_summary"),
    "mlflow": (Delivery, "_call"),
    "mlflow wait": (Tracker, "run_id"),
}
_TELLING = ("differences", "report", "summary")
_WITH_MACHINE_STATE = ("whole", "train")


@dataclass
class Spent:
    """Time of all calls of a function."""

    calls: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """CPU time of the threads that called it."""
    before: dict[str, float] = field(default_factory=dict)
    """State of the machine before the first call and after the last, for some functions."""
    after: dict[str, float] = field(default_factory=dict)

    def grown(self, what: str) -> float:
        """Return the growth of a figure from the first call to the end of the last."""
        return self.after[what] - self.before[what]


@contextmanager
def watched(output: Path) -> Iterator[dict[str, Spent]]:
    """Measure the parts of a sweep while the body runs."""
    spent = {name: Spent() for name in _PARTS}
    with ExitStack() as stack:
        for name, (owner, function) in _PARTS.items():
            look = partial(_look, output) if name in _WITH_MACHINE_STATE else dict
            counted = _counted(getattr(owner, function), spent[name], look)
            stack.enter_context(patch.object(owner, function, counted))
        yield spent


def _counted(
    plain: Callable[..., Any], spent: Spent, look: Callable[[], dict[str, float]]
) -> Callable[..., Any]:
    def counted(*args: Any, **words: Any) -> Any:
        spent.before = spent.before or look()
        began, cpu = time.monotonic(), time.thread_time()
        try:
            return plain(*args, **words)
        finally:
            spent.calls += 1
            spent.seconds += time.monotonic() - began
            spent.cpu_seconds += time.thread_time() - cpu
            spent.after = look()

    return counted


def _look(output: Path) -> dict[str, float]:
    """Return memory of this process and Ray's GCS, size of the store, bytes written, CPU time."""
    found: dict[str, float] = {
        "driver": psutil.Process().memory_info().rss,
        "written": psutil.Process().io_counters().write_chars,
        "cpu": time.process_time(),
        "store": sum(path.stat().st_size for path in output.glob("mlflow.db*")),
    }
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # A child may end between two looks.
            if child.name() == "gcs_server":
                found["gcs"] = child.memory_info().rss
    return found


def figures(config: SweepConfig, spent: dict[str, Spent], concurrent: int) -> dict[str, Any]:
    """Return all figures of a sweep that has ended."""
    count, directory = len(config.trials), Path(config.output) / config.name
    train = spent["train"]
    reports, process_cpu = _trial_reports(directory)
    work = reports * REPORT_SECONDS
    return {
        "trials": count,
        "concurrent": concurrent,
        "reports": reports,
        "scored": len([*(directory / "scores").iterdir()]),
        "scorings": spent["score"].calls,
        "whole_seconds": spent["whole"].seconds,
        "train_seconds": train.seconds,
        "work_seconds": work,
        "overhead_seconds": train.seconds * concurrent - work,
        "scheduler_cpu_seconds": train.cpu_seconds,
        "trial_process_cpu_seconds": process_cpu,
        "mlflow_seconds": spent["mlflow"].seconds,
        "mlflow_cpu_seconds": spent["mlflow"].cpu_seconds,
        "mlflow_wait_seconds": spent["mlflow wait"].seconds,
        "mlflow_bytes": spent["whole"].after["store"] - train.before["store"],
        "driver_cpu_seconds": train.grown("cpu"),
        "written_bytes": train.grown("written"),
        "driver_grown_bytes": train.grown("driver"),
        "driver_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gcs_grown_bytes": train.grown("gcs"),
        "score_seconds": spent["score"].seconds,
        "score_cpu_seconds": spent["score"].cpu_seconds,
        "telling_cpu_seconds": sum(spent[name].cpu_seconds for name in _TELLING),
        **{f"{name}_seconds": spent[name].seconds for name in _TELLING},
        **_files(Path(config.output), directory),
        **_queries(config),
    }


def _trial_reports(directory: Path) -> tuple[int, float]:
    """Return the number of reports of all trials, and the CPU seconds of their processes."""
    reports, spent = 0, dict[int, float]()
    for path in directory.glob("trials/*/result.json"):
        lines = path.read_text().splitlines()
        reports += len(lines)
        last = json.loads(lines[-1])
        spent[last["pid"]] = max(last[PROCESS_CPU], spent.get(last["pid"], 0.0))
    return reports, sum(spent.values())


def _files(output: Path, directory: Path) -> dict[str, int]:
    """Return number and size of the files per kind."""
    found: dict[str, int] = {}
    for name, root in {
        "trials": directory / "trials",
        "scores": directory / "scores",
        "logs": directory / "logs",
        "artifacts": output / "mlartifacts",
    }.items():
        sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        found |= {f"{name}_files": len(sizes), f"{name}_bytes": sum(sizes)}
    found["score_files"] = found["scores_files"] + found["artifacts_files"]
    for name in ("leaderboard.json", "report.html"):
        found[f"{name.partition('.')[0]}_bytes"] = (directory / name).stat().st_size
    return found


def _queries(config: SweepConfig) -> dict[str, float]:
    """Return the seconds of the queries that MLflow's pages make."""
    client = MlflowClient(f"sqlite:///{Path(config.output, 'mlflow.db')}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    where = [experiment.experiment_id]

    def page(query: str = "") -> Any:
        order = ["attributes.start_time DESC"]
        return client.search_runs(where, query, max_results=PAGE, order_by=order)

    trial = config.trials[len(config.trials) // 2].name
    run = page(f"attributes.run_name = '{trial}'")[0].info.run_id
    asked: dict[str, Callable[[], Any]] = {
        "run": lambda: client.get_run(run),
        "history": lambda: client.get_metric_history(run, "nll"),
        "page": page,
        "search": lambda: page("metrics.val_exact > 0.5"),
    }
    return {f"query_{name}_seconds": _typical(ask) for name, ask in asked.items()}


def _typical(ask: Callable[[], Any]) -> float:
    took = []
    for _ in range(_ASKED):
        began = time.monotonic()
        ask()
        took.append(time.monotonic() - began)
    return median(took)
