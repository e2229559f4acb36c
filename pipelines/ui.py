"""Open the MLflow UI on the store of the runs."""

import os
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.settings import check_port
from pipelines.runtime import console
from pipelines.tracking.mlflow_store import EXPERIMENT
from pipelines.tracking.tracker import store_uri

if TYPE_CHECKING:
    from pipelines.config.commands import Ui


def run(command: "Ui") -> int:
    """Replace this process by MLflow's server, which runs until it is interrupted.

    Raises:
        ValueError: there is no store yet, or the port is taken.
    """
    uri = store_uri(command.output)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ValueError(
            f"no MLflow store in {command.output!r}: run a sweep first, or give --output"
        )
    check_port(command.port, "--port")
    console.say(f"runs: http://{command.host}:{command.port}/#/{_runs_page(uri)}")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    os.execv(sys.executable, [*words, "--host", command.host, "--port", str(command.port)])


def _runs_page(uri: str) -> str:
    """Return the page of the experiment's runs below the UI's address, or the list of pages."""
    if not uri.startswith("sqlite:///"):
        return "experiments"
    query = "SELECT experiment_id FROM experiments WHERE name = ?"
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as store, suppress(sqlite3.Error):
        if found := store.execute(query, (EXPERIMENT,)).fetchone():
            return f"experiments/{found[0]}/runs"
    return "experiments"


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["ui", *sys.argv[1:]]))
