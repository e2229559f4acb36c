"""Cost of a sweep by its number of trials: ``python -m tests.benchmarks.scale``.

It prints figures per trial for each number of trials, with the ratio of the last to the first and
its bar, and writes FILE (``--json``) after every sweep: {"machine", "versions", "measures",
"sweeps"}. ``scale_sweep`` says what is simulated and what is real.

Each sweep runs in a process of its own, which is the sweep's driver. CPU times hold on a busy
machine too; wall-clock times do not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from otr.files import write_json
from tests.benchmarks import loss

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ray", "mlflow", "torch")
BAR = 1.1  # on the ratio of the largest sweep's figure to the smallest's
Figures = dict[str, Any]
MEASURES: dict[str, tuple[str, str, float, bool]] = {
    "ms of a place, but for the work": ("overhead_seconds", "trials", 1e3, False),
    "ms of the scheduler's CPU": ("scheduler_cpu_seconds", "reports", 1e3, True),
    "ms to log to MLflow": ("mlflow_seconds", "reports", 1e3, False),
    "ms of CPU for that": ("mlflow_cpu_seconds", "reports", 1e3, True),
    "KiB of mlflow.db": ("mlflow_bytes", "reports", 2**-10, True),
    "KiB that the driver grows": ("driver_grown_bytes", "trials", 2**-10, True),
    "KiB that Ray's GCS grows": ("gcs_grown_bytes", "trials", 2**-10, True),
    "ms of CPU to score, or to read the scores": ("score_cpu_seconds", "scorings", 1e3, True),
    "ms of CPU for statistics, report, tables": ("telling_cpu_seconds", "trials", 1e3, True),
    "KiB of report.html": ("report_bytes", "trials", 2**-10, True),
    "KiB of leaderboard.json": ("leaderboard_bytes", "scored", 2**-10, True),
    "files of trials": ("trials_files", "reports", 1.0, True),
    "files of scores, and in MLflow's artifacts": ("score_files", "scored", 1.0, True),
}
"""Per name: the figure, its unit of count, a factor, and whether it has the bar. Not all are per
trial, since ASHA lets a larger share of a large sweep's trials finish and be scored."""
UNITS = {
    "trials": "a trial",
    "reports": "a report",
    "scored": "a scored model",
    "scorings": "a model, each time",
}
WHOLE: dict[str, Callable[[Figures], float]] = {
    "models scored": lambda f: f["scored"],
    "seconds, all": lambda f: f["whole_seconds"],
    "seconds, trials": lambda f: f["train_seconds"],
    "MiB of the driver, most": lambda f: f["driver_peak_bytes"] / 2**20,
    "CPU seconds of statistics, report, tables": lambda f: f["telling_cpu_seconds"],
    "MiB of mlflow.db": lambda f: f["mlflow_bytes"] / 2**20,
    "ms, a run's page": lambda f: 1e3 * f["query_run_seconds"],
    "ms, a metric's history": lambda f: 1e3 * f["query_history_seconds"],
    "ms, the newest 100 runs": lambda f: 1e3 * f["query_page_seconds"],
    "ms, 100 runs with val_exact > 0.5": lambda f: 1e3 * f["query_search_seconds"],
}


def main() -> None:
    options = parse_options()
    report: Figures = {
        "machine": loss.describe_machine("cpu"),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "sweeps": [],
    }
    jobs = [(count, False) for count in options.trials]
    jobs += [(options.fresh, True)] if options.fresh else []
    for count, fresh in jobs:
        report["sweeps"].append(simulated(count, options.concurrent, fresh))
        report["measures"] = measures(report["sweeps"])
        if options.json:
            write_json(options.json, report)
    print(tables(report["sweeps"]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    add = parser.add_argument
    add("--trials", nargs="+", type=int, default=[100, 300, 1000], help="sizes, growing")
    add(
        "--fresh",
        type=int,
        default=30,
        help="trials of a sweep with a process each; 0: none",
    )
    add("--concurrent", type=int, default=1, help="trials at once: see scale_sweep")
    add("--quick", action="store_true", help="tiny sizes, to see that it runs")
    add("--json", type=Path, help="where the report goes")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.fresh = [8], 0
    return options


def simulated(count: int, concurrent: int, fresh: bool) -> Figures:
    """Run a sweep in a process of its own and return its figures.

    Raises:
        RuntimeError: it failed; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as directory:
        job = {"trials": count, "concurrent": concurrent, "fresh": fresh, "directory": directory}
        command = [sys.executable, "-m", "tests.benchmarks.scale_sweep", json.dumps(job)]
        # On a busy machine processes start slowly; Ray would give up and start others.
        environment = {"RAY_worker_register_timeout_seconds": "600", **os.environ}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the sweep of {count} trials failed")
    return json.loads(done.stdout.splitlines()[-1])


def measures(sweeps: list[Figures]) -> list[Figures]:
    """Return [{measure, unit, values, ratio, bar, met}] for the sweeps that reuse processes."""
    sizes = [sweep for sweep in sweeps if not sweep["fresh"]]
    found = []
    for name, (figure, unit, factor, barred) in MEASURES.items():
        values = [factor * sweep[figure] / sweep[unit] for sweep in sizes]
        ratio = values[-1] / values[0] if values[0] else 1.0
        bar = {"bar": f"<= {BAR:g}", "met": ratio <= BAR} if barred else {"bar": "", "met": None}
        found.append(
            {"measure": name, "unit": UNITS[unit], "values": values, "ratio": ratio, **bar}
        )
    return found


def tables(sweeps: list[Figures]) -> str:
    """Return all tables as Markdown."""
    sizes = [sweep for sweep in sweeps if not sweep["fresh"]]
    heads = [f"{sweep['trials']} trials" for sweep in sizes]
    lines = [["measure", "of", *heads, "ratio", "bar", "met"]]
    for one in measures(sweeps):
        met = {True: "yes", False: "NO", None: "-"}[one["met"]]
        figures = [f"{value:,.1f}" for value in one["values"]]
        lines.append(
            [one["measure"], one["unit"], *figures, f"{one['ratio']:.2f}", one["bar"] or "-", met]
        )
    whole = [["the sweep", *heads]]
    for name, value in WHOLE.items():
        whole.append([name, *(f"{value(sweep):,.0f}" for sweep in sizes)])
    parts = [_table(lines), _table(whole)]
    for sweep in sweeps:
        if sweep["fresh"]:
            parts.append(
                f"With a process a trial ({sweep['trials']} trials): "
                f"{sweep['trial_process_cpu_seconds'] / sweep['trials']:.1f} s of CPU a trial in "
                f"it, {sweep['overhead_seconds'] / sweep['trials']:.1f} s by the clock."
            )
    return "\n\n".join(parts)


def _table(lines: list[list[str]]) -> str:
    every = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


if __name__ == "__main__":
    main()
