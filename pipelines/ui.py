"""Open the MLflow UI on the store of the runs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from evals.settings import check_port
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
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    os.execv(sys.executable, [*words, "--host", command.host, "--port", str(command.port)])


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["ui", *sys.argv[1:]]))
