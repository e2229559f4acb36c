"""Trials from grids, configs from trials, and how many of them fit a cluster."""

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig, Workers
from tuning import resources as places
from tuning.resources import max_concurrent_trials
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, config_of, grid, with_overrides

CONFIG = TrainConfig(
    ModelConfig("model"), DataConfig(("train.jsonl",)), global_batch_size=8, micro_batch_size=8
)


def test_grid_makes_an_arm_of_every_combination_and_a_trial_of_every_seed() -> None:
    trials = grid(
        "otr-k{num_samples}", (0, 1), **{"objective.num_samples": [4, 16], "optim.lr": 0.1}
    )
    assert [t.name for t in trials] == [
        "otr-k4-seed0",
        "otr-k4-seed1",
        "otr-k16-seed0",
        "otr-k16-seed1",
    ]
    assert trials[2] == Trial("otr-k16", {"objective.num_samples": 16, "optim.lr": 0.1}, 0)


def test_combinations_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'otr-seed0'.*put what differs into the arm's name"):
        grid("otr", (0,), **{"objective.num_samples": [4, 16]})


def test_a_name_must_be_a_directory() -> None:
    with pytest.raises(ValueError, match="leave out"):
        check_names([Trial("otr/k 4")])


def test_overrides_reach_every_level_and_leave_the_rest() -> None:
    trial = Trial("otr", {"objective.temperature": 1.5, "max_steps": 7}, seed=3)
    config = config_of(CONFIG, trial)
    assert (config.objective.temperature, config.max_steps, config.seed) == (1.5, 7, 3)
    assert config.model == CONFIG.model
    assert CONFIG.objective.temperature == 1.3


def test_values_that_depend_on_each_other_change_together() -> None:
    """Neither change is valid alone: global_batch_size must be a multiple of micro_batch_size."""
    config = with_overrides(CONFIG, {"global_batch_size": 9, "micro_batch_size": 3})
    assert config.accumulation == 3


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optim.learning_rate", "use one of"),
        ("objektive.name", "did you mean 'objective'"),
        ("optim.warmup", "did you mean 'optim.warmup_steps'"),
        ("max_steps.x", "unknown option 'max_steps.x'"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        with_overrides(CONFIG, {key: 1})


def test_a_refused_value_says_why() -> None:
    with pytest.raises(ValueError, match=r"num_samples \(K\) is 0"):
        with_overrides(CONFIG, {"objective.num_samples": 0})


@pytest.mark.parametrize(
    ("workers", "resources", "expected"),
    [
        (Workers(), {"CPU": 2}, 1),
        (Workers(), {"CPU": 4}, 2),
        (Workers(count=2), {"CPU": 16}, 5),
        (Workers(cpus=2, gpus=1), {"CPU": 64, "GPU": 8}, 8),
        (Workers(cpus=2, gpus=1), {"CPU": 6, "GPU": 8}, 2),
        (Workers(count=4, gpus=0.5), {"CPU": 64, "GPU": 4}, 2),
    ],
)
def test_concurrency_leaves_ray_data_a_cpu_a_trial(
    workers: Workers, resources: dict[str, float], expected: int
) -> None:
    assert max_concurrent_trials(workers, resources) == expected


@pytest.mark.parametrize(
    ("workers", "resources"),
    [(Workers(cpus=2), {"CPU": 2}), (Workers(gpus=1), {"CPU": 64}), (Workers(), {})],
)
def test_a_cluster_that_would_hang_is_refused(
    workers: Workers, resources: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match="free are"):
        max_concurrent_trials(workers, resources)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="scheduler 'pbt': use 'none' or 'asha'"):
        SearchSettings(scheduler="pbt")  # type: ignore[arg-type]


def test_what_has_just_ended_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([{"CPU": 1.1}, {"CPU": 1.1}, {"CPU": 2.0}])
    monkeypatch.setattr(places.ray, "available_resources", lambda: next(told))
    monkeypatch.setattr(places.ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert places.free_resources() == {"CPU": 2.0}


def test_what_others_hold_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(places.ray, "available_resources", lambda: {"CPU": 1.1})
    monkeypatch.setattr(places.ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert places.free_resources() == {"CPU": 1.1}
