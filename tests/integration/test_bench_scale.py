"""A simulated sweep runs, at sizes that say nothing; its bars judge what they are given."""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from otr.config import ModelConfig
from otr.models.load import empty_model
from tests.benchmarks.scale import UNITS, measures, tables
from tests.benchmarks.scale_plan import SHAPES, weights, written
from tests.benchmarks.scale_sweep import chosen
from tuning.ended_trials import MoveEndedTrials

ROOT = Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.benchmarks
def test_a_simulated_sweep(tmp_path: Path) -> None:
    """The whole of a sweep but for its models: it ends with an error where a trial fails."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--quick", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| ms of the scheduler's CPU | a report |" in done.stdout
    [sweep] = json.loads(report.read_text())["sweeps"]
    assert sweep["trials"] == 8
    assert 1 < sweep["scored"] <= 10, "ASHA stopped all of them, or none"
    assert sweep["reports"] < 8 * 13
    assert min(value for value in sweep.values() if not isinstance(value, bool)) > 0, sweep


def sweep(trials: int, power: float = 1.0) -> dict[str, Any]:
    """Every figure 3 a trial, or growing with a power of their number."""
    value = 3.0 * trials**power
    known = {"fresh": False, **dict.fromkeys(UNITS, trials)}
    return defaultdict(lambda: value, known)


def test_bars() -> None:
    linear = measures([sweep(10), sweep(100)])
    assert {one["met"] for one in linear} == {True, None}
    assert [one["ratio"] for one in linear] == pytest.approx([1.0] * len(linear))
    grows = measures([sweep(10), sweep(100, power=1.1)])
    assert {one["met"] for one in grows} == {False, None}
    text = tables([sweep(10), sweep(100, power=1.1), sweep(5) | {"fresh": True}])
    assert "| NO |" in text and "With a process a trial (5 trials): 3.0 s" in text


def test_trials_are_the_same_each_time() -> None:
    trials = chosen(100)
    assert trials == chosen(100) and len({trial.name for trial in trials}) == 100
    assert len({trial.arm for trial in trials}) == 50
    assert {trial.name for trial in trials} < {trial.name for trial in chosen(1000)}
    with pytest.raises(ValueError, match="5000 trials were asked for"):
        chosen(5000)


def test_an_ended_trial_leaves_nothing_to_be_copied(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "result.json").write_text("{}")
    copying = [True, False]
    syncer = SimpleNamespace(_should_continue_existing_sync=lambda: copying.pop(0))
    storage = SimpleNamespace(
        syncer=syncer, storage_filesystem=LocalFileSystem(), trial_fs_path=str(there)
    )
    trial: Any = SimpleNamespace(storage=storage, local_path=str(here))
    mover = MoveEndedTrials()
    mover.on_trial_complete(0, [], trial)
    mover.on_step_end(0, [])
    assert here.is_dir(), "moved while Tune was copying it"
    mover.on_step_end(1, [])
    assert not here.exists() and (there / "result.json").read_text() == "{}"


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_on_paper_are_those_of_the_model(shape: str, tmp_path: Path) -> None:
    written(shape, tmp_path)
    model = empty_model(ModelConfig(str(tmp_path)))
    counted = sum(p.numel() for p in model.parameters())
    assert weights(SHAPES[shape]) == pytest.approx(counted, rel=1e-3)
