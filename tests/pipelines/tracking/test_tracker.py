"""What the tracker sends to MLflow, without a store."""

from pathlib import Path

import pytest

from pipelines.tracking.mlflow_store import SWEEP
from pipelines.tracking.tracker import Tracker


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "sweep", "id", tmp_path)


@pytest.fixture
def sent(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Calls that the tracker would have delivered."""
    calls: list[tuple] = []
    monkeypatch.setattr(tracker._delivery, "put", lambda *call: calls.append(call))
    return calls


def test_a_measure_is_sent_with_the_ends_of_its_interval(
    tracker: Tracker, sent: list[tuple], tmp_path: Path
) -> None:
    kl = {"value": 0.2, "low": 0.1, "high": 0.4, "n": 64, "difference": {"p": 0.01}}
    tracker.log_measures("sft-seed0", {"kl/target": kl})
    tracker.log_measures("failed", {})
    [(_, trial, metrics, _)] = sent
    assert trial == "sft-seed0"
    assert metrics == {"kl/target": 0.2, "kl/target_low": 0.1, "kl/target_high": 0.4}


def test_what_a_signal_cuts_off_is_killed_and_what_failed_by_itself_is_failed(
    tracker: Tracker, sent: list[tuple], tmp_path: Path
) -> None:
    stop_file = tmp_path / "stop"
    tracker.is_stopping = stop_file.exists
    tracker.end("diverged", ok=False)
    stop_file.touch()
    tracker.end("cut-off", ok=False)
    tracker.end("just-finished", ok=True)
    assert [call[1:3] for call in sent] == [
        ("diverged", "FAILED"),
        ("cut-off", "KILLED"),
        ("just-finished", "FINISHED"),
    ]


def test_a_run_that_a_signal_ends_is_killed(
    tracker: Tracker, sent: list[tuple], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit), tracker.run({}, {}):
        raise SystemExit(143)
    assert sent[-1][1:3] == (SWEEP, "KILLED")
