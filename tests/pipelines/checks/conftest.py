"""A small sweep configuration on a model of this machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.config.presets import PRESETS, SweepConfig
from tests.assets.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def config(model: Path, tmp_path: Path) -> SweepConfig:
    start = PRESETS["debug"]()
    train = replace(start.train, model=replace(start.train.model, path=str(model)))
    return replace(start, output=str(tmp_path / "runs"), train=train)
