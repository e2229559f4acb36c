"""The only file that writes to MLflow: what the entries of a sweep's outbox mean there.

In: entries {do, trial, ...} as `pipelines.tracking.tracker` writes them; `do` names an action of
`Store`, and trial "" is the sweep's own run. Out: runs in a store. Every action may be repeated:
runs are found again by a tag with the id of the sweep; metrics bring their own time, and of the
same key, step, time and value a store keeps one. Steps that a trial takes again, from the
checkpoint before, stay as they are.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.tracking.outbox import Away, Entry

EXPERIMENT = "otr"
_ID_TAG, _SWEEP_TAG, _TRIAL_TAG = "otr.id", "otr.sweep", "otr.trial"
_KIND_TAG, _KIND = "mlflow.experimentKind", "custom_model_development"  # which page the UI opens
METRICS, _PARAMS = 1000, 100  # that a store takes at once


def own_schema() -> str:
    """Of the sqlite stores that this MLflow writes."""
    from mlflow.store.db.utils import _get_latest_schema_revision

    return _get_latest_schema_revision()


def is_server(uri: str) -> bool:
    """Whether another process, perhaps on another machine, stands between us and the store."""
    return uri.startswith(("http://", "https://", "databricks"))


class Store:
    """The runs of one sweep in one store; the actions are for one thread."""

    def __init__(self, uri: str, sweep: str, sweep_id: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is read at the import
        import mlflow.entities  # noqa: F401 - here, since two threads that import may meet

        for name in ("mlflow", "alembic"):  # mlflow sets its level when it is imported
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.uri, self.sweep, self.sweep_id = uri, sweep, sweep_id
        self.runs: dict[str, str] = {}
        """The ids of the runs that the store is known to have, by trial."""
        self._last: dict[str, dict[str, int]] = {}
        """The last step of each metric that a run has, by trial."""
        self._began = False
        """Whether this process has made all runs of the sweep that there are."""
        self._made: Any = None
        self._actions: dict[str, Callable[..., None]] = {
            "start": self._start,
            "scores": self._scores,
            "tag": self._tag,
            "end": self._end,
            "restore": self._restore,
            "keep": self._keep,
            "register": self._register,
        }

    def act(self, entry: Entry) -> None:
        """Carry out an entry that is not of metrics."""
        words = dict(entry)
        self._actions[words.pop("do")](**words)

    def log(self, entries: Sequence[Entry]) -> None:
        """Write metrics, all of one run: entries {trial, step, time, metrics}."""
        trial, new = entries[0]["trial"], []
        last = dict(self._last.get(trial, {}))
        for entry in entries:
            step = entry["step"]
            fresh = {key: v for key, v in entry["metrics"].items() if step > last.get(key, -1)}
            last.update(dict.fromkeys(fresh, step))
            new.append({**entry, "metrics": fresh})
        self._write(new)
        self._last[trial] = last

    def _write(self, entries: Sequence[Entry]) -> None:
        from mlflow.entities import Metric

        run_id = self._id(entries[0]["trial"])
        metrics = [
            Metric(key, value, entry["time"], entry["step"])
            for entry in entries
            for key, value in entry["metrics"].items()
        ]
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + METRICS])

    def check(self) -> None:
        """Ask the store for something, to see whether it answers."""
        self._experiment()

    @property
    def _client(self) -> Any:
        """The store is made when this is first asked for."""
        if self._made is None:
            from mlflow import MlflowClient

            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            self._made = MlflowClient(self.uri)
        return self._made

    def _start(self, trial: str, **start: Any) -> None:
        """Open a run, or the same one again."""
        if self._was_there(trial, **start):
            self._client.update_run(self._id(trial), status="RUNNING")
            self._last[trial] = self._steps(trial)

    def _steps(self, trial: str) -> dict[str, int]:
        """The last step of each metric of a run."""
        run_id = self._id(trial)
        names = self._client.get_run(run_id).data.metrics
        histories = {name: self._client.get_metric_history(run_id, name) for name in names}
        return {name: max(one.step for one in history) for name, history in histories.items()}

    def _was_there(
        self, trial: str, name: str, params: Mapping[str, str], tags: Mapping[str, str], time: int
    ) -> bool:
        """Make a run where there is none; a parameter that it has stays."""
        from mlflow.entities import Param

        run = found = self._find(trial)
        if run is None:
            own = {_ID_TAG: self.sweep_id, _SWEEP_TAG: self.sweep, _TRIAL_TAG: trial}
            if trial:
                own["mlflow.parentRunId"] = self._id("")
            began, self._began = self._began, False  # it may be made, and the answer be lost
            run = self._client.create_run(self._experiment(), time, {**own, **tags}, name)
            self._began = began
        self.runs[trial] = run.info.run_id
        missing = [Param(k, v) for k, v in params.items() if k not in run.data.params]
        for start in range(0, len(missing), _PARAMS):
            self._client.log_batch(run.info.run_id, params=missing[start : start + _PARAMS])
        return found is not None

    def _scores(self, trial: str, **report: Any) -> None:
        """Write metrics that a run has once: a sweep that is repeated reads its scores again."""
        latest = self._client.get_run(self._id(trial)).data.metrics
        told = report["metrics"].items()
        new = {key: value for key, value in told if latest.get(key) != value}
        self._write([{**report, "trial": trial, "metrics": new}])

    def _tag(self, trial: str, key: str, value: str) -> None:
        self._client.set_tag(self._id(trial), key, value)

    def _end(self, trial: str, status: str, time: int) -> None:
        """Close a run, if it is open."""
        run_id = self._id(trial)
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, status, time)

    def _restore(self, trial: str, history: list[Entry], **start: Any) -> None:
        """See that the store has a run with all reports of a trial: it may have been deleted."""
        self._was_there(trial, **start)
        if not history:
            return
        run_id = self._id(trial)
        latest = self._client.get_run(run_id).data.metrics
        last = history[-1]["metrics"].items()
        if all(key in latest and _same(latest[key], value) for key, value in last):
            return
        names = sorted({key for report in history for key in report["metrics"]})
        have = {
            (key, metric.step)
            for key in names
            for metric in self._client.get_metric_history(run_id, key)
        }
        missing = []
        for report in history:
            told = report["metrics"].items()
            new = {key: value for key, value in told if (key, report["step"]) not in have}
            missing.append({**report, "trial": trial, "metrics": new})
        self._write(missing)

    def _keep(self, trial: str, paths: list[str], folder: str = "") -> None:
        """Store files (in `folder`), and directories by their name, as artifacts."""
        for path in map(Path, paths):
            if path.is_dir():
                self._client.log_artifacts(self._id(trial), str(path), path.name)
            else:
                self._client.log_artifact(self._id(trial), str(path), folder or None)

    def _register(self, trial: str, checkpoint: str) -> None:
        """Register a checkpoint as the newest version of the sweep's model, once.

        A server takes only a source that is among the run's artifacts: there the model is uploaded.
        """
        from mlflow.exceptions import MlflowException

        name, run_id, folder = f"otr-{self.sweep}", self._id(trial), Path(checkpoint)
        uploads = is_server(self.uri)
        source = f"runs:/{run_id}/{folder.name}" if uploads else folder.as_uri()
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = self._client.search_model_versions(f"name = '{name}'")
        if any(version.run_id == run_id and version.source == source for version in versions):
            return
        if uploads:
            for path in sorted(folder.iterdir()):
                if path.is_file():  # what only further training needs lies in a directory
                    self._client.log_artifact(run_id, str(path), folder.name)
        self._client.create_model_version(name, source, run_id)

    def _id(self, trial: str) -> str:
        if trial not in self.runs:
            found = self._find(trial)
            if found is None:
                raise LookupError(f"no MLflow run of {self.sweep}/{trial}")
            self.runs[trial] = found.info.run_id
        return self.runs[trial]

    def _find(self, trial: str) -> Any:
        """Its run, if there is one; a search looks through all runs of the store."""
        if trial and self._began and trial not in self.runs:
            return None
        found = self._search(f" and tags.`{_TRIAL_TAG}` = '{trial}'")
        if not trial:
            self._began = found is None and self._search() is None
        return found

    def _search(self, further: str = "") -> Any:
        query = f"tags.`{_ID_TAG}` = '{self.sweep_id}'{further}"
        found = self._client.search_runs([self._experiment()], query, max_results=1)
        return found[0] if found else None

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            artifacts = None
            if self.uri.startswith("sqlite:///"):
                folder = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
                artifacts = folder.as_uri()
            return self._client.create_experiment(EXPERIMENT, artifacts, {_KIND_TAG: _KIND})
        if found.lifecycle_stage != "active":
            number = found.experiment_id
            raise Away(
                f"its experiment {EXPERIMENT!r} was deleted: mlflow experiments restore -x {number}"
            )
        return found.experiment_id


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
