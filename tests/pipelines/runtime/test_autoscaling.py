"""Whether bundles fit on nodes, without Ray."""

import pytest

from pipelines.runtime import autoscaling


def test_parts_of_a_gpu_that_fill_it_exactly_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In floating point, 1 - 0.4 - 0.2 - 0.2 is below 0.2."""
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
    monkeypatch.setattr(autoscaling.ray, "nodes", lambda: [node])
    need = [{"CPU": 1, "GPU": 0.4}, *[{"CPU": 1, "GPU": 0.2}] * 3]
    assert autoscaling.fits(need)
    assert not autoscaling.fits([*need, {"CPU": 1, "GPU": 0.1}])
