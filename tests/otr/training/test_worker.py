"""What a worker does before it trains."""

import pytest
import torch

from otr.training import worker


@pytest.mark.parametrize(("gpus", "expected"), [(0.5, [0.475]), (1, []), (0, [])])
def test_a_worker_leaves_the_others_their_share_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: float, expected: list[float]
) -> None:
    capped: list[float] = []
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: capped.append(share)
    )
    monkeypatch.setattr(worker.ray.train.torch, "get_device", lambda: torch.device("cuda:0"))
    worker.leave_the_rest(gpus)
    assert capped == expected
