"""A run holds its directory before it writes anything there."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from pipelines.config.presets import debug
from pipelines.runtime import run_directory
from pipelines.tracking.recorded_run import recorded_run


class Reached(Exception):
    """The run is about to write run.json."""


def test_of_two_processes_that_start_at_once_one_writes_run_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_run(config: Any, directory: Path) -> NoReturn:
        with pytest.raises(ValueError, match="is in use by process"):
            run_directory.check_free(directory)
        raise Reached

    monkeypatch.setattr(run_directory, "open_run", open_run)
    with pytest.raises(Reached), recorded_run(debug(), tmp_path / "new", {}):
        pass
