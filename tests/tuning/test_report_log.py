"""Reports of a trial are on the storage when they have arrived, those of every attempt."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs
import pytest

from tuning.report_log import REPORTS, ReportLog


def trial_on(kind: str, tmp_path: Path) -> Any:
    """A trial of an attempt; each has its own directory on the driver's disk."""
    local = tmp_path / f"attempt-{len([*tmp_path.iterdir()])}"
    storage = tmp_path / "storage"
    storage.mkdir(exist_ok=True)
    plain = pyarrow.fs.LocalFileSystem()
    if kind == "local":
        place = SimpleNamespace(storage_filesystem=plain, trial_fs_path=f"{storage}/trial")
    else:
        tree = pyarrow.fs.SubTreeFileSystem(str(storage), plain)
        place = SimpleNamespace(storage_filesystem=tree, trial_fs_path="trial")
    return SimpleNamespace(
        storage=place, local_path=str(local), trial_id="1", init_local_path=local.mkdir
    )


def attempt(trial: Any, *steps: int) -> Path:
    """Report steps; return the file in which they are then."""
    log = ReportLog()
    for step in steps:
        log.on_trial_result(0, [], trial, {"step": step, "nll": np.float32(0.5)})
    local = isinstance(trial.storage.storage_filesystem, pyarrow.fs.LocalFileSystem)
    return Path(trial.storage.trial_fs_path if local else trial.local_path, REPORTS)


@pytest.mark.parametrize("kind", ["local", "object store"])
def test_a_killed_attempt_keeps_its_reports(kind: str, tmp_path: Path) -> None:
    file = attempt(trial_on(kind, tmp_path), 1, 2)
    file.write_text(file.read_text() + '{"step": 3, "n')  # killed while it wrote
    if kind == "object store":  # Tune has copied it
        stored = tmp_path / "storage" / "trial"
        stored.mkdir()
        file.rename(stored / REPORTS)
    file = attempt(trial_on(kind, tmp_path), 2, 3)
    reports = [json.loads(line) for line in file.read_text().splitlines()]
    assert [report["step"] for report in reports] == [1, 2, 2, 3]
    assert {report["nll"] for report in reports} == {0.5}


def test_an_ended_trial_leaves_no_open_file(tmp_path: Path) -> None:
    log, trial = ReportLog(), trial_on("local", tmp_path)
    log.on_trial_result(0, [], trial, {"step": 1})
    file = log._files["1"]
    log.on_trial_complete(0, [], trial)
    assert file.closed and log._files == {}
    log.on_trial_error(0, [], trial)
