"""Resources of a trial, and how many trials fit on a cluster."""

import pytest

from otr.config import Workers
from tuning import resources
from tuning.resources import free_resources, max_concurrent_trials


@pytest.mark.parametrize(
    ("workers", "available", "expected"),
    [
        (Workers(), {"CPU": 2}, 2),
        (Workers(), {"CPU": 1.5}, 1),
        (Workers(count=2), {"CPU": 17}, 8),
        (Workers(cpus=2, gpus=1), {"CPU": 64, "GPU": 8}, 8),
        (Workers(cpus=2, gpus=1), {"CPU": 7, "GPU": 8}, 3),
        (Workers(count=4, gpus=0.5), {"CPU": 64, "GPU": 4}, 2),
        (Workers(gpus=0.2), {"CPU": 64, "GPU": 1 - 0.4}, 3),
        (Workers(count=3, gpus=0.2), {"CPU": 64, "GPU": 1 - 0.4}, 1),
    ],
)
def test_as_many_trials_as_their_workers_fit(
    workers: Workers, available: dict[str, float], expected: int
) -> None:
    assert max_concurrent_trials(workers, available) == expected


@pytest.mark.parametrize(
    ("workers", "available"),
    [(Workers(cpus=2), {"CPU": 1}), (Workers(gpus=1), {"CPU": 64}), (Workers(), {})],
)
def test_a_cluster_too_small_for_one_trial_is_refused(
    workers: Workers, available: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="free are"):
        max_concurrent_trials(workers, available)


def test_resources_of_an_ended_process_count_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = iter([{"CPU": 1.1}, {"CPU": 1.1}, {"CPU": 2.0}])
    monkeypatch.setattr(resources.ray, "available_resources", lambda: next(reported))
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert free_resources() == {"CPU": 2.0}


def test_resources_that_others_hold_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "RELEASE_SECONDS", 0.2)
    monkeypatch.setattr(resources.ray, "available_resources", lambda: {"CPU": 1.1})
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert free_resources() == {"CPU": 1.1}
