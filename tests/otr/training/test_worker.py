"""What a worker does before it trains."""

import pytest
import torch

from otr.config import DataConfig, ModelConfig, TrainConfig
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


def test_the_tokens_of_the_checkpoint_that_a_run_resumes_from_are_counted_once() -> None:
    config = TrainConfig(ModelConfig("m"), DataConfig(("d",), validation=("v",)), patience=2)
    metrics = {"step": 4, "tokens": 900.0, "val_nll": 2.0}
    state = {"step": 4, "skipped_steps": 0, "stale_evaluations": 1, "metrics": metrics}
    assert worker.resumed_metrics(state, config) == {**metrics, "tokens": 0.0}
    ended = worker.resumed_metrics({**state, "stale_evaluations": 2}, config)
    assert ended == {**metrics, "tokens": 0.0, "ended_early": 1}
