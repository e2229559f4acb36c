"""A real MLflow server on this machine that can be killed, frozen and started again.

In: a directory for its store and log. Out: its address.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from evals.settings import free_port


class Server:
    """Its store, `server.db`, and its address stay the same from start to start."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
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
        """It takes connections and answers none."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on with what came in meanwhile."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, if it runs."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)  # its own group: the server and its worker
