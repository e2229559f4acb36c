"""The record of sweeps in MLflow: the only file that talks to it.

In: the address of a store, then what happens in a sweep. Out: a parent run for the sweep, a child
run for each trial, the winner in the model registry. Only the driver writes. A sweep that goes on
after an interruption goes on in the same runs: they are found by a tag with the id of its run.json,
since another sweep of the store may have the same name.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.benchmark import TaskScore

EXPERIMENT = "otr"
_ID_TAG, _SWEEP_TAG, _TRIAL_TAG = "otr.id", "otr.sweep", "otr.trial"
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"  # which page the UI opens
_LOCK_SECONDS = 5


def store_uri(output: str) -> str:
    """MLFLOW_TRACKING_URI, or the sqlite store in the output directory."""
    path = Path(output).absolute() / "mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"


def is_server(uri: str) -> bool:
    """Whether another process, perhaps on another machine, stands between us and the store."""
    return uri.startswith(("http://", "https://", "databricks"))


def check_store(uri: str) -> str:
    """See whether the store can be written to; returns what was found.

    Raises:
        ValueError: it is locked, of another version's schema, or can't be opened.
    """
    if not uri.startswith("sqlite:///"):
        return f"{uri} (a server: asked when the sweep starts)"
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        return f"{path} will be made"
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS)) as store:
            store.execute("BEGIN IMMEDIATE")
            tables = {row[0] for row in store.execute("SELECT name FROM sqlite_master")}
            version = (
                "alembic_version" in tables
                and store.execute("SELECT version_num FROM alembic_version").fetchone()
            )
            store.rollback()
    except sqlite3.Error as error:
        raise ValueError(
            f"the MLflow store {path} can't be used ({error}): end the process that holds it or "
            "give another --output"
        ) from error
    if version and version[0] != _own_schema():
        raise ValueError(
            f"the MLflow store {path} has schema {version[0]}, this MLflow writes {_own_schema()}: "
            f"use the MLflow that made it, `mlflow db upgrade sqlite:///{path}` if that one was "
            "older, or another --output"
        )
    return str(path)


def _own_schema() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()


@dataclass
class Outcome:
    """Whether all went well; to be set by the body of `Tracker.run`."""

    ok: bool = False


class Tracker:
    """The runs of one sweep: of its name, and of the id that no other sweep has."""

    def __init__(self, uri: str, sweep: str, sweep_id: str) -> None:
        self.uri, self.sweep, self.sweep_id = uri, sweep, sweep_id
        self._client: Any = None
        self._runs: dict[str, str] = {}

    @property
    def client(self) -> Any:
        """The MLflow client; the store is made when it is first asked for."""
        if self._client is None:
            from mlflow import MlflowClient

            for name in ("mlflow", "alembic"):  # mlflow sets its level when it is imported
                logging.getLogger(name).setLevel(logging.ERROR)
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._client = MlflowClient(self.uri)
        return self._client

    @contextmanager
    def run(self, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Outcome]:
        """Keep the sweep's run open while the body runs; the same one again when it goes on."""
        self._open("", self.sweep, params, tags)
        outcome = Outcome()
        try:
            yield outcome
        finally:
            self.end(ok=outcome.ok)

    def start_trial(self, trial: str, params: Mapping[str, Any]) -> str:
        """Open a trial's run under the sweep's; returns its id."""
        return self._open(trial, trial, params, {"mlflow.parentRunId": self.run_id()})

    def run_id(self, trial: str = "") -> str:
        """The id of a trial's run, or of the sweep's.

        Raises:
            KeyError: the store has none.
        """
        if not self.has(trial):
            raise KeyError(f"no MLflow run of {self.sweep}/{trial}")
        return self._runs[trial]

    def has(self, trial: str) -> bool:
        """Whether the store has a run of the trial: not if it never started, or was deleted."""
        if trial not in self._runs and (found := self._find(trial)) is not None:
            self._runs[trial] = found
        return trial in self._runs

    def log(self, trial: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Write the metrics of a step in one batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id(trial), metrics=batch)

    def log_scores(self, trial: str, scores: Iterable[TaskScore]) -> None:
        """Write each score with the ends of its interval."""
        metrics = {}
        for score in scores:
            metrics[f"score/{score.task}"] = score.value
            metrics[f"score/{score.task}_low"] = score.low
            metrics[f"score/{score.task}_high"] = score.high
        self.log(trial, metrics)

    def tag(self, trial: str, key: str, value: str) -> None:
        """Tag a run."""
        self.client.set_tag(self.run_id(trial), key, value)

    def describe(self, text: str) -> None:
        """What the page of the sweep's run says at its top (Markdown)."""
        self.tag("", "mlflow.note.content", text)

    def end(self, trial: str = "", *, ok: bool) -> None:
        """Close a run, if it is open."""
        run_id = self.run_id(trial)
        if self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, "FINISHED" if ok else "FAILED")

    def keep(self, paths: Sequence[Path]) -> None:
        """Store files, and directories by their name, as artifacts of the sweep's run."""
        for path in paths:
            if path.is_dir():
                self.client.log_artifacts(self.run_id(), str(path), path.name)
            else:
                self.client.log_artifact(self.run_id(), str(path))

    def register(self, trial: str, checkpoint: Path) -> str:
        """Register a trial's checkpoint as the newest version of the sweep's model, once.

        A server takes only a source that is among the run's artifacts: there the model is uploaded.
        """
        from mlflow.exceptions import MlflowException

        name, run_id = f"otr-{self.sweep}", self.run_id(trial)
        uploads = is_server(self.uri)
        source = f"runs:/{run_id}/{checkpoint.name}" if uploads else checkpoint.as_uri()
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self.client.search_model_versions(f"name = '{name}'")
        for version in versions:
            if version.run_id == run_id and version.source == source:
                return f"{name} version {version.version}"
        if uploads:
            self._upload(run_id, checkpoint)
        version = self.client.create_model_version(name, source, run_id)
        return f"{name} version {version.version}"

    def _upload(self, run_id: str, checkpoint: Path) -> None:
        """The model of a checkpoint, without what only further training needs."""
        from otr.checkpoint import STATE_FILE

        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.name != STATE_FILE:
                self.client.log_artifact(run_id, str(path), checkpoint.name)

    def _open(
        self, trial: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str:
        run_id = self._find(trial)
        if run_id is None:
            own = {_ID_TAG: self.sweep_id, _SWEEP_TAG: self.sweep, _TRIAL_TAG: trial}
            tags = {**own, **tags}
            run_id = self.client.create_run(
                self._experiment(), run_name=name, tags=tags
            ).info.run_id
            self._log_params(run_id, params)
        else:
            self.client.update_run(run_id, status="RUNNING")
        self._runs[trial] = run_id
        return run_id

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        batch = [Param(key, str(value)[:6000]) for key, value in params.items()]
        for start in range(0, len(batch), 100):
            self.client.log_batch(run_id, params=batch[start : start + 100])

    def _find(self, trial: str) -> str | None:
        query = f"tags.`{_ID_TAG}` = '{self.sweep_id}' and tags.`{_TRIAL_TAG}` = '{trial}'"
        found = self.client.search_runs([self._experiment()], query, max_results=1)
        return found[0].info.run_id if found else None

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        artifacts = None
        if self.uri.startswith("sqlite:///"):
            folder = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            artifacts = folder.as_uri()
        return self.client.create_experiment(EXPERIMENT, artifacts, {_KIND_TAG: _KIND})
