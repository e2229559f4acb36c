"""The line of the training stage: what became of the trials."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import debug
from pipelines.stages import train


@pytest.mark.parametrize(
    ("states", "stopped", "line"),
    [
        (["finished", "finished"], False, "✓ train      2 trials: 2 finished"),
        (["finished", "failed", "stopped"], False, "~ train      3 trials: 1 finished, 1 failed"),
        (["failed"], False, "~ train      1 trial: 1 failed"),
        (["finished", "failed"], True, "~ train      stopped: 1 of 2 trials finished"),
    ],
)
def test_the_last_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    stopped: bool,
    line: str,
) -> None:
    def run(*arguments: Any, **options: Any) -> list[SimpleNamespace]:
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return [SimpleNamespace(status=status) for status in states]

    monkeypatch.setattr("tuning.sweep.run", run)
    monkeypatch.setattr(train, "pack_on_cluster", lambda _: [])
    monkeypatch.setattr("pipelines.tracking.trial_callbacks.finalize_trial", lambda *_: None)
    prepared = PreparedRun(replace(debug(), output=str(tmp_path)))
    prepared.directory.mkdir()
    tracker: Any = SimpleNamespace()
    if stopped:
        with pytest.raises(SystemExit, match="143"):
            train.train(prepared, tracker)
    else:
        assert len(train.train(prepared, tracker)) == len(states)
    assert line in capsys.readouterr().err
