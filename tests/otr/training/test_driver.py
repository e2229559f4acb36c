"""A run's directory belongs to one run, which may become longer."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig, Workers
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


def test_only_elastic_workers_are_counted_anew_if_they_do_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray may count a host that was just lost; a fixed number waits for its replacement."""
    monkeypatch.setattr(driver.ray, "nodes", list)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop(driver.START_TIMEOUT, None)
    for workers, seconds in ((Workers(2, min_count=1), 30), (Workers(2), 7 * 24 * 3600)) * 2:
        driver._set_ray_train_environment(workers)
        assert os.environ[driver.START_TIMEOUT] == str(seconds)
    os.environ[driver.START_TIMEOUT] = "5"  # the user's own
    driver._set_ray_train_environment(Workers(2))
    assert os.environ[driver.START_TIMEOUT] == "5"
