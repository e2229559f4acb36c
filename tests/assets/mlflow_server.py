"""A real MLflow server on this machine, and a view of what a store holds."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from evals.settings import free_port
from pipelines.tracking.mlflow_store import EXPERIMENT


class Server:
    """A server that can be killed, frozen and restarted; its store and address stay the same."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; return when it answers."""
        words = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        words += ["--host", "127.0.0.1", "--port", str(self.port)]
        words += ["--backend-store-uri", f"sqlite:///{self.directory}/server.db"]
        words += ["--artifacts-destination", f"{self.directory}/artifacts"]
        log = self.directory / "server.log"
        with log.open("a") as file:
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._process = subprocess.Popen(
                words, stdout=file, stderr=file, env=environment, start_new_session=True
            )
        while True:
            assert self._process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health"):
                    return
            except OSError:
                time.sleep(0.2)

    def freeze(self) -> None:
        """Let the server accept connections without answering any."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the server answer again, first what it received while it was frozen."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the server at once, if it runs."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)  # its own group: the server and its worker


@dataclass(frozen=True)
class StoredRun:
    """What a store holds of a run; two stores with the same content give equal ones."""

    status: str
    parent: str | None
    """Name of the parent run."""
    params: dict[str, str]
    tags: dict[str, str]
    """Without those that MLflow sets."""
    metrics: dict[str, list[tuple[int, float]]]
    """Every value with its step, by metric, in order of steps."""
    artifacts: list[str]
    versions: list[str]
    """Source of each model version that was registered from this run."""


def stored_runs(uri: str, condition: str = "") -> dict[str, StoredRun]:
    """Read the runs of a store by name; fail where two runs have the same one."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], condition)
    names = {run.info.run_id: run.info.run_name for run in runs}
    assert len(set(names.values())) == len(names), "two runs have the same name"

    def artifacts(run_id: str, folder: str | None = None) -> list[str]:
        found = client.list_artifacts(run_id, folder)
        below = [each for one in found if one.is_dir for each in artifacts(run_id, one.path)]
        return sorted([*(one.path for one in found if not one.is_dir), *below])

    def stored(run_id: str) -> StoredRun:
        run = client.get_run(run_id)
        histories = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        return StoredRun(
            status=run.info.status,
            parent=names.get(run.data.tags.get("mlflow.parentRunId", "")),
            params=run.data.params,
            tags={k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")},
            metrics={
                key: sorted((metric.step, metric.value) for metric in history)
                for key, history in histories.items()
            },
            artifacts=artifacts(run_id),
            versions=[version.source.replace(run_id, "RUN") for version in versions],
        )

    return {name: stored(run_id) for run_id, name in names.items()}
