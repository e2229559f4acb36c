"""What a worker does before it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from otr.config import DataConfig, ModelConfig, TrainConfig, Workers
from otr.training import worker


class Began(Exception):
    """Raised by the first thing that a worker does after its set-up."""


@pytest.mark.parametrize(("gpus", "expected"), [(0.5, [0.475]), (1, []), (0, [])])
def test_a_worker_leaves_the_others_their_share_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: float, expected: list[float]
) -> None:
    capped: list[float] = []

    def store(*arguments: Any) -> None:
        raise Began

    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: capped.append(share)
    )
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cuda:0"))
    monkeypatch.setattr(worker, "CheckpointStore", store)
    config = TrainConfig(ModelConfig("m"), DataConfig(("d",)), workers=Workers(gpus=gpus))
    with pytest.raises(Began):
        worker.train_loop(worker.Job(config, str(tmp_path), str(tmp_path)))
    assert capped == expected
