"""How a sweep grows with its number of trials: ``python -m tests.benchmarks.scale``.

In: numbers of trials. Out: figures a trial at each of them, with the ratio of the last to the
first and its bar, and FILE (``--json``) with {"machine", "versions", "measures", "sweeps"},
rewritten after every sweep. What is simulated and what is real: ``scale_sweep``.

Each sweep runs in a process of its own, which is the sweep's driver. CPU times count what its
threads computed, and so hold on a busy machine; seconds by the clock do not.
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

from tests.benchmarks import loss

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("ray", "mlflow", "torch")
BAR = 1.1  # of the last size's figure a trial to the first's
Figures = dict[str, Any]
MEASURES: dict[str, tuple[Callable[[Figures], float], str]] = {
    "ms by the clock x trials at once, without the work": (
        lambda f: 1e3 * f["overhead_seconds"] / f["trials"],
        "",
    ),
    "ms CPU of the scheduler": (lambda f: 1e3 * f["scheduler_cpu_seconds"] / f["trials"], "<="),
    "ms CPU of the driver, all threads": (
        lambda f: 1e3 * f["driver_cpu_seconds"] / f["trials"],
        "<=",
    ),
    "KiB that the driver writes": (lambda f: f["written_bytes"] / f["trials"] / 2**10, "<="),
    "ms CPU of MLflow": (lambda f: 1e3 * f["mlflow_cpu_seconds"] / f["trials"], "<="),
    "ms to log to MLflow": (lambda f: 1e3 * f["mlflow_seconds"] / f["trials"], ""),
    "KiB of mlflow.db": (lambda f: f["mlflow_bytes"] / f["trials"] / 2**10, "<="),
    "KiB of the driver's growth": (lambda f: f["driver_grown_bytes"] / f["trials"] / 2**10, "<="),
    "KiB of the growth of Ray's GCS": (lambda f: f["gcs_grown_bytes"] / f["trials"] / 2**10, "<="),
    "ms to score, a scored model": (lambda f: 1e3 * f["score_seconds"] / f["scored"], ""),
    "ms CPU to score, a scored model": (
        lambda f: 1e3 * f["score_cpu_seconds"] / f["scored"],
        "<=",
    ),
    "ms CPU of statistics, report, tables": (
        lambda f: 1e3 * f["telling_cpu_seconds"] / f["trials"],
        "<=",
    ),
    "KiB of report.html": (lambda f: f["report_bytes"] / f["trials"] / 2**10, "<="),
    "KiB of leaderboard.json": (lambda f: f["leaderboard_bytes"] / f["trials"] / 2**10, "<="),
    "files on storage": (
        lambda f: sum(f[k] for k in f if k.endswith("_files")) / f["trials"],
        "<=",
    ),
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
            loss.write_json(options.json, report)
    print(tables(report["sweeps"]))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    add = parser.add_argument
    add("--trials", nargs="+", type=int, default=[100, 300, 1000], help="sizes, growing")
    add("--fresh", type=int, default=30, help="trials of a sweep with a process each; 0: none")
    add("--concurrent", type=int, default=2, help="trials at once")
    add("--quick", action="store_true", help="sizes that say nothing: does it run?")
    add("--json", type=Path, help="where the report goes")
    options = parser.parse_args()
    if options.quick:
        options.trials, options.fresh = [8], 0
    return options


def simulated(count: int, concurrent: int, fresh: bool) -> Figures:
    """The figures of a sweep, from a process of its own.

    Raises:
        RuntimeError: it failed; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as directory:
        job = {"trials": count, "concurrent": concurrent, "fresh": fresh, "directory": directory}
        command = [sys.executable, "-m", "tests.benchmarks.scale_sweep", json.dumps(job)]
        # On a busy machine a process takes longer to begin, and Ray would begin another one.
        environment = {"RAY_worker_register_timeout_seconds": "600", **os.environ}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the sweep of {count} trials failed")
    return json.loads(done.stdout.splitlines()[-1])


def measures(sweeps: list[Figures]) -> list[Figures]:
    """[{measure, values, ratio, bar, met}] of the sweeps that reuse processes."""
    sizes = [sweep for sweep in sweeps if not sweep["fresh"]]
    found = []
    for name, (value, sign) in MEASURES.items():
        values = [value(sweep) for sweep in sizes]
        ratio = values[-1] / values[0] if values[0] else 1.0
        bar = {"bar": f"<= {BAR:g}", "met": ratio <= BAR} if sign else {"bar": "", "met": None}
        found.append({"measure": name, "values": values, "ratio": ratio, **bar})
    return found


def tables(sweeps: list[Figures]) -> str:
    """All as Markdown."""
    sizes = [sweep for sweep in sweeps if not sweep["fresh"]]
    heads = [f"{sweep['trials']} trials" for sweep in sizes]
    lines = [["a trial", *heads, "ratio", "bar", "met"]]
    for one in measures(sweeps):
        met = {True: "yes", False: "NO", None: "-"}[one["met"]]
        figures = [f"{value:,.4g}" for value in one["values"]]
        lines.append([one["measure"], *figures, f"{one['ratio']:.2f}", one["bar"] or "-", met])
    whole = [["the sweep", *heads]]
    for name, value in WHOLE.items():
        whole.append([name, *(f"{value(sweep):,.4g}" for sweep in sizes)])
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
