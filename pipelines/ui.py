"""Open the MLflow UI on the store of the runs.

In: the runs' directory and a port. Out: a web server on 127.0.0.1, until it is interrupted.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Ui:
    """What to show, and where."""

    output: str = "runs"
    """Directory of the runs."""
    port: int = 5000
    host: str = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Replace this process by MLflow's server.

    Raises:
        ValueError: there is no store yet, or the port is taken.
    """
    from evals.settings import check_port
    from pipelines.config import options
    from pipelines.tracking.tracker import store_uri

    ui = options.simple(Ui, argv, "otr ui")
    uri = store_uri(ui.output)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ValueError(f"no MLflow store in {ui.output!r}: run a sweep first, or give --output")
    check_port(ui.port)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    words = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    os.execv(sys.executable, [*words, "--host", ui.host, "--port", str(ui.port)])


if __name__ == "__main__":
    from pipelines import cli

    sys.exit(cli.main(["ui", *sys.argv[1:]]))
