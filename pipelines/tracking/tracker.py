"""The record of a sweep in MLflow: a parent run for the sweep, a child run for each trial.

Only `run_id` and the end of `Tracker.run` wait for MLflow, and nothing here fails when MLflow is
unavailable. The run's directory holds everything that MLflow is to hold. So the same command again
brings MLflow up to date: it opens the same runs and repeats every call, `reconcile` for the trials
that have ended included. Only the driver writes.

Trackers besides MLflow (`--trackers`) get the same metrics, parameters and scores of the trials.
"""

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.benchmark import TaskScore
from pipelines import _compat
from pipelines.runtime import console
from pipelines.tracking.beside import BesideMlflow
from pipelines.tracking.delivery import Delivery, quiet_client, without_login
from pipelines.tracking.mlflow_store import SWEEP, Report, Store, is_server

DRAIN_SECONDS = 30
"""How long the end of a run waits for a store that is unavailable."""
_LOCK_SECONDS = 5


def store_uri(output: str) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the sqlite store in the output directory."""
    path = Path(output).absolute() / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


def check_store(uri: str) -> str:
    """Check that a store can be written to; return a description of it.

    A server is not asked: a run does not need it.

    Raises:
        ValueError: the store is locked, has another version's schema, or cannot be opened.
    """
    if uri.startswith("file:") or not (is_server(uri) or "://" in uri):
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri!r}, but MLflow no longer stores runs in plain files: set "
            "it to a server's address or sqlite:///PATH, or unset it"
        )
    if not uri.startswith("sqlite:///"):
        return f"{without_login(uri)} (a server: runs continue while it is unavailable)"
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return f"{path} will be created"
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")
            tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            revision = (
                "alembic_version" in tables
                and store.execute("SELECT version_num FROM alembic_version").fetchone()
            )
            store.rollback()
    except sqlite3.Error as error:
        raise ValueError(
            f"the MLflow store {path} cannot be used ({error}): end the process that holds it or "
            "give another --output"
        ) from error
    ours = _compat.mlflow_schema_revision()
    if revision and revision[0] != ours:
        raise ValueError(
            f"the MLflow store {path} has schema {revision[0]}, this MLflow writes {ours}: use the "
            f"MLflow that created it, `mlflow db upgrade sqlite:///{path}` if that one was older, "
            "or another --output"
        )
    return str(path)


@dataclass
class Outcome:
    """Whether a run went well; the body of `Tracker.run` sets it."""

    ok: bool = False


class Tracker:
    """The runs of one sweep; nothing is sent before `run`.

    Args:
        uri: address of the store.
        sweep: name of the sweep.
        sweep_id: id that no other sweep has; runs are found again by it.
        directory: the run's directory; its log lists the requests that the store refuses.
        trackers: names of trackers besides MLflow.
    """

    def __init__(
        self,
        uri: str,
        sweep: str,
        sweep_id: str,
        directory: Path,
        trackers: Sequence[str] = (),
    ) -> None:
        self._store = Store(uri, sweep, sweep_id)
        log = directory / "logs" / "driver.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._delivery = Delivery(self._store, f"MLflow at {without_login(uri)}", log)
        self._beside = [BesideMlflow(name, sweep, sweep_id, directory) for name in trackers]
        self.is_stopping: Callable[[], bool] = lambda: False
        """Returns whether a signal asked the run to stop; what it cuts off is KILLED in MLflow."""

    @contextmanager
    def run(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Outcome]:
        """Hold the sweep's run open while the body runs; create it, or resume the same one."""
        with quiet_client():
            self._delivery.start()
            for each in self._beside:
                each.start()
            self._delivery.put(self._store.start, SWEEP, dict(params), dict(tags), _now())
            outcome, patience = Outcome(), DRAIN_SECONDS
            try:
                yield outcome
            except (KeyboardInterrupt, SystemExit):
                patience, self.is_stopping = 0, lambda: True
                raise
            finally:
                self.end(ok=outcome.ok)
                for each in self._beside:
                    each.close(patience)
                if self._delivery.close(patience):
                    console.note(
                        f"{self._delivery.service} is still unavailable: all results are on disk, "
                        "and the same command again sends them"
                    )

    def run_id(self, trial: str = SWEEP) -> str | None:
        """Return the id of a trial's run; None when the store has not answered yet.

        This waits for requests that are under way, but not for an unavailable store.
        """
        self._delivery.wait(0)
        return self._store.run_ids.get(trial)

    def start_trial(self, trial: str, params: Mapping[str, Any]) -> None:
        """Create a trial's run below the sweep's, or resume the same one."""
        self._delivery.put(self._store.start, trial, dict(params), {}, _now())
        for each in self._beside:
            each.start_trial(trial, dict(params))

    def log(self, trial: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the metrics of a step, for the live curves."""
        report = _report(step, metrics, _now())
        self._delivery.put(self._store.log, trial, report)
        for each in self._beside:
            each.log(trial, report.metrics, step)

    def reconcile(
        self,
        trial: str,
        params: Mapping[str, Any],
        history: Iterable[tuple[int, Mapping[str, float]]],
    ) -> None:
        """Write what the store lacks of a trial that has ended: its run, parameters and reports.

        Args:
            trial: name of the trial.
            params: as for `start_trial`.
            history: step and metrics of every report, in order.
        """
        now = _now()
        reports = [_report(step, metrics, now) for step, metrics in history]
        self._delivery.put(self._store.reconcile, trial, dict(params), reports, now)
        for each in self._beside:
            each.reconcile(trial, dict(params), [(r.step, r.metrics) for r in reports])

    def log_scores(self, trial: str, scores: Iterable[TaskScore]) -> None:
        """Write each score with the ends of its interval, once however often it is repeated.

        Further metrics of a benchmark stand under its name: score/gsm8k_at_8/pass_at_4.
        """
        metrics: dict[str, float] = {}
        for score in scores:
            intervals = {"": [score.value, score.low, score.high], **score.also}
            for metric, interval in intervals.items():
                name = _metric_name(f"score/{score.task}" + (f"/{metric}" if metric else ""))
                metrics |= _with_ends(name, *interval)
        self._log_scores(trial, metrics)

    def log_measures(self, trial: str, measures: Mapping[str, Mapping[str, Any]]) -> None:
        """Write measures, {value, low, high} each, as `log_scores` writes scores."""
        metrics: dict[str, float] = {}
        for name, measure in measures.items():
            metrics |= _with_ends(name, measure["value"], measure["low"], measure["high"])
        if metrics:
            self._log_scores(trial, metrics)

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Write numbers of the whole sweep to its own run, once however often it is repeated."""
        named = {_metric_name(name): value for name, value in metrics.items()}
        self._delivery.put(self._store.log_scores, SWEEP, named, _now())

    def tag(self, trial: str, key: str, value: str) -> None:
        """Set a tag of a run."""
        self._delivery.put(self._store.tag, trial, key, value)

    def set_description(self, text: str) -> None:
        """Set the Markdown text at the top of the page of the sweep's run."""
        self.tag(SWEEP, "mlflow.note.content", text)

    def end(self, trial: str = SWEEP, *, ok: bool) -> None:
        """Close a run, unless it is closed already."""
        status = "FINISHED" if ok else "KILLED" if self.is_stopping() else "FAILED"
        self._delivery.put(self._store.end, trial, status, _now())
        for each in self._beside if trial != SWEEP else ():
            each.end(trial, ok=ok)

    def log_artifacts(self, paths: Sequence[Path], trial: str = SWEEP, folder: str = "") -> None:
        """Upload files into `folder`, and directories under their own name, as artifacts."""
        self._delivery.put(
            self._store.log_artifacts, trial, [path.absolute() for path in paths], folder
        )

    def register(self, trial: str, checkpoint: Path, description: str = "") -> None:
        """Register a trial's checkpoint as the newest version of the sweep's model, once."""
        self._delivery.put(self._store.register, trial, checkpoint.absolute(), description)

    def _log_scores(self, trial: str, metrics: Mapping[str, float]) -> None:
        self._delivery.put(self._store.log_scores, trial, metrics, _now())
        for each in self._beside if trial != SWEEP else ():
            each.log_scores(trial, metrics)


def _report(step: int, metrics: Mapping[str, float], time: int) -> Report:
    return Report(step, time, {_metric_name(name): value for name, value in metrics.items()})


def _with_ends(name: str, value: float, low: float, high: float) -> dict[str, float]:
    """Return a metric and the ends of its interval by their names in MLflow."""
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _metric_name(name: str) -> str:
    """Replace the signs that MLflow refuses in a name, such as the @ of gsm8k@8."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))


def _now() -> int:
    return int(time.time() * 1000)
