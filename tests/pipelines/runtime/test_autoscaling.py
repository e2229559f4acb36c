"""Whether bundles fit on nodes, without Ray."""

from dataclasses import replace

import pytest

from otr.config import Workers
from pipelines.config.presets import PRESETS
from pipelines.runtime import autoscaling
from tuning.settings import SearchSettings


def test_parts_of_a_gpu_that_fill_it_exactly_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In floating point, 1 - 0.4 - 0.2 - 0.2 is below 0.2."""
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(autoscaling.ray, "nodes", lambda: [node])
    need = [{"CPU": 1, "GPU": 0.4}, *[{"CPU": 1, "GPU": 0.2}] * 3]
    assert autoscaling.fits(need)
    assert not autoscaling.fits([*need, {"CPU": 1, "GPU": 0.1}])


def test_the_cluster_grows_for_all_trials_at_once_and_for_the_engine_beside_them() -> None:
    start = PRESETS["debug"]()
    train = replace(start.train, workers=Workers(2, cpus=3), micro_batch_size=4)
    config = replace(start, train=train)
    worker, engine = {"CPU": 3, "GPU": 0}, {"CPU": 1, "GPU": 0}
    assert autoscaling.need_of_trials(config, 5) == [worker] * 10, "a search has 5, the sweep 2"
    limited = replace(config, search=SearchSettings(max_concurrent=3))
    assert autoscaling.need_of_trials(limited, 5) == [worker] * 6
    judged = SearchSettings(benchmark="gsm8k:items=1-20", metric="answers", max_concurrent=3)
    need = autoscaling.need_of_trials(replace(config, search=judged), 2)
    assert need == [*[worker] * 4, engine]
