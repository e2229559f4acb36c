"""The packing stage: what it tells beforehand, and what every trial finds packed."""

import json
import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from otr.config import DataConfig, ModelConfig
from pipelines.config.prepared import PreparedRun
from pipelines.config.presets import debug
from pipelines.stages import pack
from tests.assets.tiny import make_tiny_model
from tuning.space import Trial

ROWS = 300


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedRun:
    rows = [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(ROWS)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig((str(tmp_path / "data.jsonl"),), sequence_length=128)
    model = ModelConfig(str(make_tiny_model(tmp_path / "model")))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0})  # one part: no task of Ray
    train = replace(debug().train, data=data, model=model)
    config = replace(debug(), output=str(tmp_path / "runs"), train=train, trials=(Trial("one"),))
    return PreparedRun(config)


def test_disk_and_time_are_told_before_packing_begins(
    run: PreparedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    [path] = pack.pack(run)
    told, line = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        rf"packing about (\d+) rows of 128 tokens: ([\d.]+) kB in {pack.packed_dir(run)}, \d+ s",
        told,
    )
    assert found
    [rows] = Path(path).glob("*.rows")
    assert abs(float(found[2]) * 1000 - rows.stat().st_size) < 100
    assert f"tokens in {found[1]} rows of 128" in line and "filled" in line
    pack.pack(run)
    [line] = capsys.readouterr().err.splitlines()
    assert "found packed" in line


def test_a_disk_that_is_too_small_is_told_before_packing_begins(
    run: PreparedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    with pytest.raises(ValueError, match=r"needs about [\d.]+ kB in .* which has 1\.0 kB left"):
        pack.pack(run)
    assert not Path(pack.packed_dir(run)).exists()


def test_what_trials_change_in_the_data_is_packed_too(run: PreparedRun) -> None:
    trials = [
        Trial("short", {"data.sequence_length": 64}),
        Trial("long", {"data.sequence_length": 128, "optim.lr": 1e-4}),
        Trial("long-fast", {"data.sequence_length": 128, "optim.lr": 1e-3}, seed=1),
    ]
    paths = pack.pack(replace(run, config=replace(run.config, trials=tuple(trials))))
    assert len(set(paths)) == len(paths) == 2
