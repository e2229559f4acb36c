"""A run's directory belongs to one run, which may become longer."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig, Workers
from otr.loop.checkpoint import STATE, TRAINER
from otr.training import driver
from otr.training.checkpoint_store import list_checkpoints, recover


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


@pytest.mark.parametrize(
    ("report", "stopped", "left"),
    [
        ({"step": 8}, False, ["step-000002", "step-000008"]),
        ({"step": 8, "ended_early": 1}, False, ["step-000002", "step-000008"]),
        ({"step": 6}, True, ["step-000002", "step-000006", "step-000008"]),
    ],
    ids=["finished", "ended early", "stopped"],
)
def test_the_last_checkpoint_but_one_stays_only_of_a_run_that_has_not_finished(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: dict[str, Any],
    stopped: bool,
    left: list[str],
) -> None:
    """The best one, of step 2, stays in any case; so does the last, from which a run goes on."""
    monkeypatch.setattr(driver, "ensure_store", lambda *_: "packed")
    monkeypatch.setattr(driver, "_set_ray_train_environment", lambda _: None)
    monkeypatch.setattr(driver._compat, "start_autoscaling_coordinator", lambda: None)
    monkeypatch.setattr(driver._compat, "remove_placement_group", lambda _: None)
    listed = tmp_path / "run" / driver._compat.CHECKPOINT_LIST

    def fit() -> SimpleNamespace:
        listed.write_text("{}")
        return SimpleNamespace(metrics=report)

    monkeypatch.setattr(driver, "_trainer", lambda *_: SimpleNamespace(fit=fit))
    (rows := tmp_path / "rows.jsonl").write_text("{}")
    config = TrainConfig(ModelConfig("hub/name"), DataConfig((str(rows),)), max_steps=8)
    if report.get("ended_early"):
        config = replace(config, max_steps=9)
    for step, nll in ((2, 0.1), (6, 0.3), (8, 0.2)):
        write_checkpoint(tmp_path / "run" / f"step-{step:06d}", nll)
    (stop := tmp_path / "stop").touch()
    stop_file = str(stop) if stopped else None
    driver.fit(config, storage=str(tmp_path), name="run", stop_file=stop_file)
    assert list_checkpoints(str(tmp_path / "run")) == left
    assert recover(str(tmp_path / "run")) == ("step-000008", [])
    assert not listed.exists(), "Ray would look for the deleted one"


def write_checkpoint(directory: Path, nll: float) -> None:
    """Write what makes a checkpoint of one rank complete."""
    (trainer := directory / TRAINER).mkdir(parents=True)
    state = {"world": 1, "step": int(directory.name[5:]), "metrics": {"val_nll": nll}}
    (trainer / STATE).write_text(json.dumps(state))
    (trainer / "files-0.json").write_text("{}")
