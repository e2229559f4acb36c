"""Recipes: TOML files that change a preset, as options do."""

from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config.options import UsageError
from pipelines.config.presets import SweepConfig
from pipelines.config.recipe import read_recipe
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


OWN_ARMS = """
preset = "debug"
seeds = [1, 2]
train.model.path = "builtin:smollm2"
benchmarks = ["gsm8k"]

[train.objective]
temperature = 1.5
num_samples = 8

[arms.sft]
objective.name = "sft"

[arms.strict]
objective.mismatch_reward = -1
objective.num_samples = 64
optim.lr = 1e-3
"""


def test_a_recipe_may_have_arms_of_its_own(tmp_path: Path) -> None:
    config = load(tmp_path, OWN_ARMS)
    names = ["sft-seed1", "sft-seed2", "strict-seed1", "strict-seed2"]
    assert [trial.name for trial in config.trials] == names
    sft, strict = (config_of(config.train, trial) for trial in config.trials[::2])
    assert (sft.objective.name, strict.objective.name) == ("sft", "otr")
    assert (sft.optim.lr, strict.optim.lr) == (config.train.optim.lr, 1e-3), "not the preset's"
    own = (strict.objective.mismatch_reward, strict.objective.num_samples)
    assert own == (-1, 64) and strict.objective.temperature == 1.5, "an arm wins over [train]"


def test_options_win_over_the_arms_of_a_recipe(tmp_path: Path) -> None:
    config = load(tmp_path, OWN_ARMS, "--arms", "strict", "--train.optim.lr", "1e-5")
    assert {trial.arm for trial in config.trials} == {"strict"}
    assert config_of(config.train, config.trials[0]).optim.lr == 1e-5
    assert load(tmp_path, OWN_ARMS, command="train").trials[0].overrides == {}


def test_the_arms_of_a_recipe_are_searched(tmp_path: Path) -> None:
    content = OWN_ARMS.replace("optim.lr = 1e-3", "")
    words = ("--search", "optim.lr=choice(1e-5,1e-4)", "--search.sampler", "grid")
    alone = content.replace('[arms.sft]\nobjective.name = "sft"', "")
    config = load(tmp_path, alone, *words)
    assert [t.arm for t in config.trials[::2]] == ["sft", "strict"], "with the control"
    config = load(tmp_path, content, *words, "--arms", "sft", "strict", "dft")
    assert [t.arm for t in config.trials[::2]] == ["sft", "strict", "dft"]
    with pytest.raises(UsageError, match=r"the arm strict sets optim\.lr to 0\.001, and it is"):
        load(tmp_path, OWN_ARMS, *words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train.max_stpes = 3", "unknown key 'train.max_stpes': did you mean 'max_steps'"),
        ("perset = 'debug'", "unknown key 'perset': did you mean 'preset'"),
        ("max_steps = 3", "unknown key 'max_steps': did you mean 'train.max_steps'"),
        ("[train]\nlearning_rate = 1e-5", "'train.learning_rate': did you mean 'train.optim.lr'"),
        ("[optim]\nlr = 1e-5", "unknown key 'optim': did you mean 'train.optim'"),
        ("arms.mine.lr = 1e-5", "unknown key 'arms.mine.lr': did you mean 'optim.lr'"),
        ("dry_run = true", "unknown key 'dry_run': use one of 'name', 'train'"),
        ("train.model = 'mine'", "expected a table; did you mean train.model.path"),
        ("'train.seed.x' = 3", "unknown key 'train.seed.x': 'train.seed' is not a table"),
        ("train = 3", "train is 3: expected a table"),
        ("train.max_steps = 'many'", "train.max_steps is 'many': expected an integer"),
        ("benchmarks = 'gsm8k'", r"benchmarks is 'gsm8k': expected a list, as in \['gsm8k'\]"),
        ("preset = 'bultin'", "preset is 'bultin': use one of 'builtin'"),
        ("train.optim.lr = -1", "train.optim.lr is -1: use a number > 0"),
        ("train.objective.num_samples = -3", "^train.objective.num_samples is -3: use an integer"),
        ("arms = ['stf']", "no arm 'stf': did you mean 'sft'"),
        ("arms = 3", "arms is 3: expected a list"),
        ("arms = ['sft']\n[arms.mine]", "line 2.*arms is a list of names or tables .*, not both"),
        ("arms.mine = 3", "arms.mine is 3: expected a table"),
        ("arms.mine.objectve.name = 'sft'", "'arms.mine.objectve': did you mean 'objective'"),
        ("arms.mine.objective.name = 'stf'", "arms.mine: .*'stf'.*did you mean 'sft'"),
        ("arms.mine.max_steps = 3", "arms.mine sets max_steps: an arm sets objective, optim"),
        ("arms.mine.optim.lr = 'a'", "arms.mine.optim.lr is 'a': expected a number"),
        ("arms.mine.optim.lr = -1", "arms.mine: optim.lr is -1: use a number > 0"),
        ("arms.mine.objective.num_samples = 0", "^arms.mine: objective.num_samples is 0: use an"),
        (
            "arms.mine.objective.clip = 0.5",
            "^arms.mine: objective.clip is 0.5, but it is a setting",
        ),
        ("[arms.a]\n[arms.b]", "the arms a and b are the same"),
        ("arms.'a/b'.optim.lr = 1e-4", "arm 'a/b': an arm's name is part of a directory's"),
        ("arms.base.optim.lr = 1e-4", "arms.base: the base model has this name"),
        ("seeds = [0, 0]", "seed 0 is given twice"),
        ("seeds = [-1]", "seed is -1: use an integer from 0"),
        ("train.optim.lr = '1e-5'", "train.optim.lr is '1e-5': expected a number, without quotes"),
        ("train.max_steps = '20'", "expected an integer, without quotes"),
        ("search.budget = 40", "search.budget is 40: expected a string, in quotes"),
        ("search.space = {'optim.lr' = [1e-5, 1e-4]}", r"search.space.optim.lr is \[1e-05, 0.0001"),
        ("[train]\nlora.alpha = 8", "train.lora.alpha is given, but .*lora.rank is 0"),
        ("trials = []", "trials can't be given: give arms as tables"),
        ("a = ", "mine.toml: Invalid value"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, content)


def test_a_value_that_a_field_refuses_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load(tmp_path, "train.optim.lr = -1")


def test_a_recipe_may_begin_with_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbfseeds = [5]")
    assert read_recipe(file).seeds == (5,)
    file.write_bytes(b"name = 'caf\xe9'")
    with pytest.raises(ValueError, match=r"mine\.toml: it is not UTF-8 \(at byte 11\)"):
        read_recipe(file)


def test_a_missing_recipe_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^recipe no\.toml: no such file in {tmp_path}$"):
        read_recipe("no.toml")
    with pytest.raises(ValueError, match=r"no such file; for the preset .* give --preset study"):
        read_recipe("study")


def test_the_keys_of_a_space_need_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('search.budget = "4 h"\n[search.space]\noptim.lr = "uniform(1,2)"')
    assert read_recipe(file).overrides["search.space"] == {"optim.lr": "uniform(1,2)"}
