"""A search on the command line, in a recipe and in a run.json."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config.options import UsageError
from pipelines.config.presets import SweepConfig
from tuning.space import Trial

SPACE = '"optim.lr=loguniform(1e-6,1e-4)" "objective.num_samples=choice(4,16)"'
LINE = f"--search {SPACE} --budget 40 trials"


def load(line: str) -> SweepConfig:
    return cli.parse(["sweep", *shlex.split(line)]).load()


def test_a_search_has_controls_beside_and_no_rates_of_the_preset() -> None:
    config = load(LINE)
    assert config.search.space["optim.lr"] == "loguniform(1e-6,1e-4)"
    assert config.search.budget == "40 trials" == load(f"{LINE} ").search.budget
    assert list(dict.fromkeys(t.arm for t in config.trials)) == ["sft", "dft", "otr"]
    assert config.trials[0] == Trial("sft", {"objective.name": "sft"}, 0)
    alone = load(f"{LINE} --arms otr otr-expected --seeds 5")
    assert [t.name for t in alone.trials] == ["sft-seed5", "otr-seed5", "otr-expected-seed5"]
    assert load(f"{LINE} --arms otr").name != load(LINE).name != load("").name


def test_a_recipe_and_a_run_json_repeat_a_search(tmp_path: Path) -> None:
    recipe = tmp_path / "search.toml"
    recipe.write_text(
        'arms = ["otr"]\n[search]\nbudget = "6 h"\n[search.space]\n'
        '"optim.lr" = "loguniform(1e-6,1e-4)"\n'
    )
    config = load(f"--config {recipe}")
    assert config.search.space == {"optim.lr": "loguniform(1e-6,1e-4)"}
    assert [t.arm for t in config.trials] == ["sft", "sft", "otr", "otr"]
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"config": asdict(config)}))
    assert load(f"--config {run}") == config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{LINE} --arms otrr", "no arm 'otrr': did you mean 'otr'"),
        (f"{LINE} --train.optim.lr 1e-4", r"optim\.lr is given .* and searched"),
        ("--search optim.lr=uniform(1,2)", "needs a budget"),
        ("--budget 4 trials", "nothing is searched"),
        ("--search optim.lr=uniform(2,1) --budget 4 trials", "low 2 is not below"),
        ("--search objective.num_samples=choice(4,8) --arms dft --budget 4 h", "no arm has it"),
        (f"--search {SPACE} --budget 2 trials", r"less than one trial for each of 3 arms \(sft,"),
        (f"{LINE} --search.metric val_los", "by val_los, which is no metric of validation data"),
        (f"{LINE} --train.data.validation", "validation data, and there is none"),
        ("--search.sampler random", "search.sampler is 'random', but nothing is searched"),
    ],
)
def test_a_wrong_search_is_a_wrong_command_line(line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(line)
