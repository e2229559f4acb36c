"""What is secret comes from the environment alone, and is never written nor printed."""

from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from evals.settings import free_port
from pipelines import full_sweep
from pipelines.checks import machine
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.runtime import console, run_directory
from pipelines.tracking import tracker as tracking
from pipelines.tracking.outbox import Entry, Outbox
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
    """With a store that nothing listens for, or that does not speak TLS as it is asked to."""
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


def written(folder: Path) -> list[str]:
    """The files below a folder that hold it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "nothing was written"
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_a_run_with_a_store_that_is_away(
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
        console.say(machine.packages(config))
        tracker.start_trial("one", {"lr": 0.1})
        tracker.log("one", {"loss": 1.0})
        assert tracker.run_id() is None
        raise RuntimeError("to have a traceback in the log")
    assert {path.name for path in directory.iterdir()} >= {"run.json", "outbox.jsonl", "logs"}
    assert written(tmp_path) == []
    out, err = capfd.readouterr()
    assert "//127.0.0.1" in err and "is away" in err and SECRET not in out + err


def test_a_dry_run(config: SweepConfig, capfd: pytest.CaptureFixture) -> None:
    assert full_sweep.main(["--preset", "debug", "--dry-run", "--output", config.output]) == 0
    out, err = capfd.readouterr()
    assert "one example" in out and SECRET not in out + err


def test_what_a_store_will_never_take_is_kept_without_the_login(tmp_path: Path) -> None:
    def refuse(entries: list[Entry]) -> int:
        raise ValueError(f"400 of http://someone:{SECRET}@host:5000/api")

    told: list[str] = []
    outbox = Outbox(tmp_path / "outbox.jsonl", refuse, "the store", told.append)
    outbox.put({"do": "log"})
    outbox.start()
    outbox.close(10)
    assert written(tmp_path) == [] and "400 of http://host:5000/api" in told[0]


def test_it_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(f'{{"environment": "{SECRET}-HF_TOKEN"}}')
    assert written(tmp_path) == ["run.json"]
