"""The runs of one sweep in an MLflow store: the only module that writes to MLflow.

Every method of `Store` may be repeated. A run is found again by a tag with the sweep's id, a metric
is written once per key and step, a parameter once, and a model version once per checkpoint. Times
are milliseconds since the epoch.
"""

import fcntl
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.tracking.mlflow_model import COMPONENTS, write_mlmodel

if TYPE_CHECKING:
    from mlflow.entities import Metric

EXPERIMENT = "otr"
SWEEP = ""
"""Stands for the sweep's own run where a trial's name is expected."""
_ID_TAG, _SWEEP_TAG, _TRIAL_TAG = "otr.id", "otr.sweep", "otr.trial"
_REPORTS_TAG = "otr.reports"  # how much of a trial's history the store holds for certain
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"  # the UI's first page
_MAX_METRICS, _MAX_PARAMS = 1000, 100  # MLflow's limits per request
_MAX_PARAM_LENGTH = 6000  # characters; MLflow's limit
_Item = TypeVar("_Item")


class Unavailable(Exception):
    """The store answers, but cannot take anything until someone repairs it."""


@dataclass(frozen=True)
class Report:
    """The metrics of one step of a trial."""

    step: int
    time: int
    metrics: Mapping[str, float]


def is_server(uri: str) -> bool:
    """Return whether a server, perhaps on another machine, holds the store."""
    return uri.startswith(("http://", "https://", "databricks"))


class Store:
    """The runs of one sweep, by trial name. The methods are for one thread."""

    def __init__(self, uri: str, sweep: str, sweep_id: str) -> None:
        # MLflow reads this variable when it is imported. Importing it here, in the main thread,
        # keeps two threads from importing it at the same time.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow.entities  # noqa: F401

        for name in ("mlflow", "alembic"):  # mlflow sets its own level when it is imported
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.uri, self.sweep, self.sweep_id = uri, sweep, sweep_id
        self.run_ids: dict[str, str] = {}
        """Ids of the runs that are known to exist."""
        self._steps: dict[str, dict[str, set[int]]] = {}
        """Steps that the store holds, by trial and metric; read from the store when needed."""
        self._lazy_client: Any = None

    def check(self) -> None:
        """Make a cheap request, to see whether the store answers."""
        self._experiment_id()

    def start(
        self, trial: str, params: Mapping[str, Any], tags: Mapping[str, str], time: int
    ) -> None:
        """Create a run; where it exists, set its status to running."""
        if self._ensure_run(trial, params, tags, time):
            self._client.update_run(self.run_ids[trial], status="RUNNING")

    def log(self, trial: str, *reports: Report) -> None:
        """Write reports of a trial; a step that the store holds keeps its values.

        A trial that restarts from a checkpoint repeats the steps after it.
        """
        from mlflow.entities import Metric

        known = self._known_steps(trial)
        missing: dict[tuple[str, int], Metric] = {}
        for report in reports:
            for key, value in report.metrics.items():
                if report.step not in known.get(key, ()):
                    metric = Metric(key, value, report.time, report.step)
                    missing.setdefault((key, report.step), metric)
        self._log_metrics(trial, missing.values())

    def reconcile(
        self, trial: str, params: Mapping[str, Any], history: Sequence[Report], time: int
    ) -> None:
        """Write what the store lacks of a trial's run: the run itself, parameters, metrics.

        A tag marks a history that has been written to its end, so that a repeated command need not
        read the metrics of every trial.
        """
        self._ensure_run(trial, params, {}, time)
        if history:
            complete = f"{len(history)} up to step {history[-1].step}"
            run_id = self.run_ids[trial]
            if self._client.get_run(run_id).data.tags.get(_REPORTS_TAG) != complete:
                self.log(trial, *history)
                self._client.set_tag(run_id, _REPORTS_TAG, complete)

    def log_scores(self, trial: str, scores: Mapping[str, float], time: int) -> None:
        """Write the scores that differ from the latest ones of the run."""
        from mlflow.entities import Metric

        latest = self._client.get_run(self._run_id(trial)).data.metrics
        new = [Metric(k, value, time, 0) for k, value in scores.items() if latest.get(k) != value]
        self._log_metrics(trial, new)

    def tag(self, trial: str, key: str, value: str) -> None:
        """Set a tag of a run."""
        self._client.set_tag(self._run_id(trial), key, value)

    def end(self, trial: str, status: str, time: int) -> None:
        """Close a run, unless it is closed already."""
        run_id = self._run_id(trial)
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, status, time)

    def log_artifacts(self, trial: str, paths: Sequence[Path], folder: str) -> None:
        """Upload files into `folder`, and directories under their own name."""
        run_id = self._run_id(trial)
        for path in paths:
            if path.is_dir():
                self._client.log_artifacts(run_id, str(path), path.name)
            else:
                self._client.log_artifact(run_id, str(path), folder or None)

    def register(self, trial: str, checkpoint: Path, description: str) -> None:
        """Register a checkpoint as the newest version of the sweep's model, once.

        `mlflow.transformers.load_model` loads it, unless it is a LoRA adapter.
        A server accepts only a source among the run's artifacts, so the model is uploaded there.
        """
        from mlflow.exceptions import MlflowException

        name, run_id = f"otr-{self.sweep}", self._run_id(trial)
        uploads = is_server(self.uri)
        source = f"runs:/{run_id}/{checkpoint.name}" if uploads else checkpoint.as_uri()
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}'")
        if any(version.run_id == run_id and version.source == source for version in versions):
            return
        loads = write_mlmodel(checkpoint)
        if uploads:
            for path in sorted(checkpoint.iterdir()):
                if path.is_file():  # directories hold only what further training needs
                    self._client.log_artifact(run_id, str(path), checkpoint.name)
            if loads:
                folder = f"{checkpoint.name}/{COMPONENTS}"
                self._client.log_artifacts(run_id, str(checkpoint / COMPONENTS), folder)
        self._client.create_model_version(name, source, run_id, description=description or None)

    @property
    def _client(self) -> Any:
        """MLflow's client; the first use creates a sqlite store."""
        if self._lazy_client is None:
            from mlflow import MlflowClient

            with _creating_tables(self.uri):
                self._lazy_client = MlflowClient(self.uri)
        return self._lazy_client

    def _ensure_run(
        self, trial: str, params: Mapping[str, Any], tags: Mapping[str, str], time: int
    ) -> bool:
        """Create a run and parameters that it lacks; return whether the run existed."""
        from mlflow.entities import Param

        run = found = self._find_run(trial)
        if run is None:
            ours = {_ID_TAG: self.sweep_id, _SWEEP_TAG: self.sweep, _TRIAL_TAG: trial}
            if trial != SWEEP:
                ours["mlflow.parentRunId"] = self._run_id(SWEEP)
            name = trial or self.sweep
            run = self._client.create_run(self._experiment_id(), time, {**ours, **tags}, name)
            self._steps[trial] = {}
        self.run_ids[trial] = run.info.run_id
        missing = (
            Param(key, str(value)[:_MAX_PARAM_LENGTH])
            for key, value in params.items()
            if key not in run.data.params
        )
        for some in _batches(missing, _MAX_PARAMS):
            self._client.log_batch(run.info.run_id, params=some)
        return found is not None

    def _known_steps(self, trial: str) -> dict[str, set[int]]:
        if trial not in self._steps:
            run_id = self._run_id(trial)
            self._steps[trial] = {
                key: {metric.step for metric in self._client.get_metric_history(run_id, key)}
                for key in self._client.get_run(run_id).data.metrics
            }
        return self._steps[trial]

    def _log_metrics(self, trial: str, metrics: "Iterable[Metric]") -> None:
        run_id, known = self._run_id(trial), self._steps.get(trial, {})
        for some in _batches(metrics, _MAX_METRICS):
            self._client.log_batch(run_id, metrics=some)
            for metric in some:  # remembered at once: the next batch may fail
                known.setdefault(metric.key, set()).add(metric.step)

    def _run_id(self, trial: str) -> str:
        if trial not in self.run_ids:
            found = self._find_run(trial)
            if found is None:
                raise LookupError(f"no MLflow run of {self.sweep}/{trial}")
            self.run_ids[trial] = found.info.run_id
        return self.run_ids[trial]

    def _find_run(self, trial: str) -> Any:
        query = f"tags.`{_ID_TAG}` = '{self.sweep_id}' and tags.`{_TRIAL_TAG}` = '{trial}'"
        found = self._client.search_runs([self._experiment_id()], query, max_results=1)
        return found[0] if found else None

    def _experiment_id(self) -> str:
        """Return the id of the experiment, which is created where it does not exist.

        Raises:
            Unavailable: someone deleted the experiment.
        """
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            artifacts = None
            if self.uri.startswith("sqlite:///"):
                folder = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
                artifacts = folder.as_uri()
            try:
                return self._client.create_experiment(EXPERIMENT, artifacts, {_KIND_TAG: _KIND})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another driver created it in the meantime (github.com/mlflow/mlflow/issues/4123).
                found = self._client.get_experiment_by_name(EXPERIMENT)
        if found.lifecycle_stage != "active":
            raise Unavailable(
                f"its experiment {EXPERIMENT!r} was deleted: "
                f"mlflow experiments restore -x {found.experiment_id}"
            )
        return found.experiment_id


@contextmanager
def _creating_tables(uri: str) -> Iterator[None]:
    """Let one process at a time create the tables of a sqlite store.

    Drivers that create the same tables at once leave them half migrated
    (github.com/daizutabi/hydraflow/issues/245).
    """
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///")).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
