"""Presets are valid, have few options, and name built-in files that exist."""

from dataclasses import fields, is_dataclass, replace

import pytest

from evals import tasks
from otr.config import OptimConfig, types_of
from otr.loss.objective import names
from pipelines.builtin import corpus
from pipelines.config.options import load_config
from pipelines.config.presets import PRESETS, SweepConfig
from tuning.space import Trial, config_of

MOST_FIELDS = 96


def count_leaves(kind: type) -> int:
    return sum(count_leaves(each) if is_dataclass(each) else 1 for each in types_of(kind).values())


def test_the_project_has_few_config_fields() -> None:
    options = count_leaves(SweepConfig) - 1  # `chosen` is no option
    assert options + len(fields(Trial)) <= MOST_FIELDS


@pytest.mark.parametrize("name", PRESETS)
def test_every_trial_of_a_preset_is_a_valid_training_run(name: str) -> None:
    config = PRESETS[name]()
    assert config.name == name
    for trial in config.trials:
        own = config_of(config.train, trial)
        assert own.optim.lr == trial.overrides["optim.lr"]


def test_builtin_compares_five_objectives_with_two_seeds_each() -> None:
    trials = PRESETS["builtin"]().trials
    arms = {t.arm: config_of(PRESETS["builtin"]().train, t).objective for t in trials}
    assert [*arms] == ["sft", "dft", "otr-expected", "otr-k16", "otr-k256"]
    assert len(trials) == 10
    assert arms["sft"].name == "sft" and arms["dft"].name == "dft"
    assert arms["otr-expected"].estimator == "expected"
    assert (arms["otr-k16"].num_samples, arms["otr-k256"].num_samples) == (16, 256)
    for name in ("otr-expected", "otr-k16", "otr-k256"):
        assert (arms[name].temperature, arms[name].mismatch_reward) == (1.3, -0.1)


def test_family_has_an_arm_of_every_objective() -> None:
    config = PRESETS["family"]()
    made = [config_of(config.train, trial) for trial in config.trials]
    assert {each.objective.name for each in made} == set(names())
    assert {trial.seed for trial in config.trials} == {0, 1}
    assert {trial.arm for trial in config.trials} >= {"sft", "eaft", "otr-expected", "otr-k16"}
    assert len({each.optim.lr for each in made}) == 1


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b"])
def test_a_name_is_that_of_a_directory_in_the_output(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        replace(PRESETS["debug"](), name=name)


def test_study_crosses_the_settings_and_has_the_controls() -> None:
    config = PRESETS["study"]()
    found = {
        (o.num_samples, o.mismatch_reward, o.temperature)
        for t in config.trials
        if (o := config_of(config.train, t).objective).estimator == "sampled" and o.name == "otr"
    }
    assert found == {
        (k, beta, kappa)
        for k in (1, 4, 16, 64, 256)
        for beta in (-1.0, -0.1, 0.0)
        for kappa in (1.0, 1.3)
    }
    kinds = {
        (o.name, o.estimator) for t in config.trials for o in [config_of(config.train, t).objective]
    }
    assert {("sft", "sampled"), ("dft", "sampled"), ("otr", "expected")} < kinds
    assert config.search.scheduler == "asha"


def test_gsm8k_compares_three_arms_on_a_real_model_or_any_other() -> None:
    config = PRESETS["gsm8k"]()
    objectives = {t.arm: config_of(config.train, t).objective for t in config.trials}
    assert [*objectives] == ["sft", "dft", "otr-k256"]
    otr = objectives["otr-k256"]
    assert (otr.num_samples, otr.temperature, otr.mismatch_reward) == (256, 1.3, -0.1)
    other = load_config("gsm8k", "", {"train": {"model": {"path": "mine"}}})
    assert other.train.model.path == "mine" and other.benchmarks == config.benchmarks
    assert other.train.data == config.train.data and other.max_items == config.max_items
    assert {config_of(other.train, t).optim.lr for t in other.trials} == {OptimConfig.lr}
    assert [t.arm for t in other.trials] == [*objectives]


@pytest.mark.parametrize("name", PRESETS)
def test_builtin_names_exist(name: str, tmp_path: object) -> None:
    config = PRESETS[name]()
    data = config.train.data
    for each in (*data.paths, *data.validation, *config.benchmarks):
        known = {*corpus._FILES, *corpus._TRAINING_SETS}
        short = tasks.short_name(each)
        assert short.removeprefix(corpus.PREFIX) in known or short in tasks.names()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, "name"),
        ({"trials": ()}, "no trial"),
        ({"benchmarks": ()}, "no benchmark"),
        ({"max_items": -1}, "max_items"),
    ],
)
def test_an_impossible_sweep_is_refused(change: dict, message: str) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match=message):
        replace(PRESETS["debug"](), **change)
