"""Recipes: TOML files that change a preset, as options do."""

from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config.options import UsageError
from pipelines.config.presets import SweepConfig
from tuning.space import config_of

RECIPE = """
preset = "debug"
arms = ["otr-k16"]
seeds = [3, 4]
benchmarks = ["gsm8k", "file:mine.jsonl"]
"train.optim.lr" = 1e-5

[train]
max_steps = 20
data.paths = ["a.jsonl"]
data.columns = { prompt = "question", completion = "answer" }

[train.objective]
mismatch_reward = 0
"""


def load(path: Path, content: str, *words: str, command: str = "sweep") -> SweepConfig:
    (path / "mine.toml").write_text(content)
    return cli.parse([command, "--config", str(path / "mine.toml"), *words]).load()


def test_a_recipe_changes_a_preset(tmp_path: Path) -> None:
    config = load(tmp_path, RECIPE)
    assert [trial.name for trial in config.trials] == ["otr-k16-seed3", "otr-k16-seed4"]
    assert config.benchmarks == ("gsm8k", "file:mine.jsonl") and config.train.max_steps == 20
    assert config.train.data.columns == {"prompt": "question", "completion": "answer"}
    assert config.train.data.validation == (), "as with --data"
    trained = config_of(config.train, config.trials[0])
    assert (trained.optim.lr, trained.objective.mismatch_reward) == (1e-5, 0), "wins over the arm"
    assert config.name.startswith("base-a-"), "after model and data"


def test_options_win_over_a_recipe(tmp_path: Path) -> None:
    words = ("--max-steps", "5", "--seeds", "7", "--preset", "builtin", "--name", "mine")
    config = load(tmp_path, RECIPE, *words)
    assert (config.train.max_steps, config.name) == (5, "mine")
    assert [trial.name for trial in config.trials] == ["otr-k16-seed7"]
    assert config.train.eval_interval == 40, "the preset builtin"
    single = load(tmp_path, "train.max_steps = 9", command="train")
    assert single.train.max_steps == 9 and [t.arm for t in single.trials] == ["train"]


def test_a_recipe_may_have_trials_of_its_own(tmp_path: Path) -> None:
    content = '[[trials]]\narm = "high"\noverrides = { "optim.lr" = 1e-3 }\nseed = 2'
    config = load(tmp_path, content)
    assert [config_of(config.train, trial).optim.lr for trial in config.trials] == [1e-3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train.max_stpes = 3", "unknown key 'train.max_stpes': did you mean 'max_steps'"),
        ("perset = 'debug'", "unknown key 'perset': did you mean 'preset'"),
        ("'train.seed.x' = 3", "unknown key 'train.seed.x': 'train.seed' is not a table"),
        ("train = 3", "train is 3: expected a table"),
        ("train.max_steps = 'many'", "train.max_steps is 'many': expected an integer"),
        ("benchmarks = 'gsm8k'", "benchmarks is 'gsm8k': expected a list"),
        ("preset = 'bultin'", "preset is 'bultin': use one of 'builtin'"),
        ("train.optim.lr = -1", "optim.lr is -1: use a number > 0"),
        ("arms = ['stf']", "no arm 'stf': did you mean 'sft'"),
        ("a = ", "mine.toml: Invalid value"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)


def test_a_value_that_a_field_refuses_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, "train.optim.lr = -1")
