"""Trials from grids, and configs from trials."""

import pytest

from otr.config import DataConfig, ModelConfig, TrainConfig
from tuning.settings import SearchSettings
from tuning.space import Trial, check_names, config_of, grid, with_overrides

CONFIG = TrainConfig(
    ModelConfig("model"), DataConfig(("train.jsonl",)), global_batch_size=8, micro_batch_size=8
)


def test_grid_makes_an_arm_per_combination_and_a_trial_per_seed() -> None:
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


def test_combinations_with_the_same_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'otr-seed0'.*put what differs into the arm's name"):
        grid("otr", (0,), **{"objective.num_samples": [4, 16]})


def test_a_name_must_be_a_directory_name() -> None:
    with pytest.raises(ValueError, match="part of a directory"):
        check_names([Trial("otr/k 4")])


def test_overrides_reach_every_level_and_change_nothing_else() -> None:
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
        ("optim.learning_rate", r"did you mean 'optim\."),
        ("objektive.name", "did you mean 'objective'"),
        ("optim.warmup", "did you mean 'optim.warmup_steps'"),
        ("max_steps.x", "unknown option 'max_steps.x'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        with_overrides(CONFIG, {key: 1})


def test_an_invalid_value_is_refused_with_the_reason() -> None:
    with pytest.raises(
        ValueError, match=r"^objective\.num_samples is 4, but it is a setting of otr, not of dft"
    ):
        with_overrides(CONFIG, {"objective.name": "dft", "objective.num_samples": 4})
    with pytest.raises(ValueError, match=r"objective\.num_samples is 0"):
        with_overrides(CONFIG, {"objective.num_samples": 0})


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match="scheduler is 'pbt': use 'none', 'asha' or 'median'"):
        SearchSettings(scheduler="pbt")  # type: ignore[arg-type]
