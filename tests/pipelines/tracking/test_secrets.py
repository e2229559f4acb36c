"""Secrets come from the environment alone, and are never written nor printed."""

from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from evals.settings import free_port
from pipelines import cli
from pipelines.checks import machine
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.runtime import console, run_directory
from pipelines.tracking import tracker as tracking
from pipelines.tracking.delivery import Delivery
from pipelines.tracking.tracker import Tracker, check_store, store_uri

SECRET = "planted-5f3a"
VARIABLES = (
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
)


@pytest.fixture(params=["http", "https"])
def config(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SweepConfig]:
    """A config whose store nothing serves, or whose server does not speak TLS."""
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{SECRET}-{name}")
    monkeypatch.setattr(tracking, "DRAIN_SECONDS", 1)
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = free_port() if request.param == "http" else server.server_port
    store = f"{request.param}://someone:{SECRET}@127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield replace(PRESETS["debug"](), output=str(tmp_path / "runs"))
    finally:
        server.shutdown()
        server.server_close()


def files_with_the_secret(folder: Path) -> list[str]:
    """Return the names of the files below a folder that contain the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "nothing was written"
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_a_run_with_an_unavailable_store(
    config: SweepConfig, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    directory = Path(config.output) / config.name
    told = run_directory.open_run(config, directory)
    tracker = Tracker(store_uri(config.output), config.name, told["id"], directory)
    with (
        pytest.raises(RuntimeError),
        run_directory.log_errors(directory),
        tracker.run(run_directory.mlflow_params(config), run_directory.mlflow_tags(told)),
    ):
        console.say(check_store(store_uri(config.output)))
        console.say(machine.check_packages())
        tracker.start_trial("one", {"lr": 0.1})
        tracker.log("one", {"loss": 1.0})
        assert tracker.run_id() is None
        raise RuntimeError("to have a traceback in the log")
    assert {path.name for path in directory.iterdir()} >= {"run.json", "logs"}
    assert files_with_the_secret(tmp_path) == []
    out, err = capfd.readouterr()
    assert "//127.0.0.1" in err and "is unavailable" in err and SECRET not in out + err


def test_a_dry_run(config: SweepConfig, capfd: pytest.CaptureFixture) -> None:
    assert cli.main(["sweep", "--preset", "debug", "--dry-run", "--output", config.output]) == 0
    out, err = capfd.readouterr()
    assert "one example" in out and SECRET not in out + err


def test_a_refused_request_is_logged_without_the_login(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    class Refusing:
        def log(self, trial: str, address: str) -> None:
            raise ValueError(f"400 of {address}")

    store: Any = Refusing()
    delivery = Delivery(store, "the store", tmp_path / "driver.log")
    delivery.put(store.log, "trial", f"http://someone:{SECRET}@host:5000/api")
    delivery.start()
    delivery.close(10)
    assert files_with_the_secret(tmp_path) == []
    assert "400 of http://host:5000/api" in capfd.readouterr().err


def test_a_planted_secret_is_found(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"environment": "{SECRET}-HF_TOKEN"}}')
    assert files_with_the_secret(tmp_path) == ["run.json"]
