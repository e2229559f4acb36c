"""A run's directory belongs to one run, which may become longer."""

from dataclasses import replace
from pathlib import Path

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig
from otr.training import driver


def test_a_run_may_become_longer_which_its_note_and_identity_say(tmp_path: Path) -> None:
    (rows := tmp_path / "rows.jsonl").write_text("{}")
    config = TrainConfig(ModelConfig("hub/name"), DataConfig((str(rows),)), max_steps=100)
    run = str(tmp_path / "run")
    assert driver.stored_max_steps(run) is None
    assert driver._check_identity(config, run) == driver._check_identity(config, run) == ""
    longer = replace(config, max_steps=200)
    assert driver._check_identity(longer, run) == (
        "has 200 steps instead of 100: from here on, the learning rate follows the schedule of 200 "
        "steps"
    )
    assert driver.stored_max_steps(run) == 200 and driver._check_identity(longer, run) == ""
    with pytest.raises(ValueError, match=r"\(max_steps was 200, is 100\)"):
        driver._check_identity(config, run)
