"""From options to a `SweepConfig`: what is given wins over presets, recipes and arms."""

from pathlib import Path

import pytest

from evals.settings import EngineSettings
from otr.config import OptimConfig
from otr.loss.objective import Objective, names
from pipelines import cli
from pipelines.config.options import UsageError
from pipelines.config.presets import PRESETS, SweepConfig
from tuning.space import config_of


def load(line: str) -> SweepConfig:
    """The configuration of a command line of `otr`; sweep, if no command is named."""
    words = line.split()
    command = words[:1] in (["train"], ["score"], ["doctor"])
    return cli.parse(words if command else ["sweep", *words]).load()


def test_without_options_a_preset_is_unchanged() -> None:
    assert load("") == load("doctor") == PRESETS["builtin"]()
    assert load("--preset study") == PRESETS["study"]()


def test_short_options() -> None:
    config = load(
        "--data a.jsonl b.jsonl --columns prompt=question completion=answer --benchmarks gsm8k "
        "--max-items 50 --max-steps 20 --benchmark-dir data --name mine --model m"
        " --workers 2 --train.micro-batch-size 4"
    )
    data = config.train.data
    assert data.paths == ("a.jsonl", "b.jsonl")
    assert data.columns == {"prompt": "question", "completion": "answer"}
    assert data.validation == (), "the preset's validation set belongs to its own corpus"
    assert data.sequence_length == 1024, "and so does its sequence length"
    assert load("--data a --train.data.sequence-length 99").train.data.sequence_length == 99
    assert load("--data a --validation b").train.data.validation == ("b",)
    assert (config.benchmarks, config.max_items, config.train.max_steps) == (("gsm8k",), 50, 20)
    assert (config.benchmark_dir, config.name, config.train.model.path) == ("data", "mine", "m")
    assert config.train.workers.count == 2


def test_the_micro_batch_follows_the_workers_unless_it_was_given() -> None:
    assert load("").train.micro_batch_size == 8
    assert load("--workers 8").train.micro_batch_size == 1
    assert load("--workers 2 --train.global-batch-size 24").train.micro_batch_size == 4
    with pytest.raises(UsageError, match=r"micro_batch_size x workers\.count = 8 x 2"):
        load("--workers 2 --train.micro-batch-size 8")
    with pytest.raises(UsageError, match="use a multiple of"):
        load("--workers 3")


def test_dotted_options_take_hyphens_and_underscores() -> None:
    for line in ("--train.max-steps 7", "--train.max_steps=7", "--max_steps=7"):
        assert load(line).train.max_steps == 7
    assert not load("--train.data.no-skip-bad").train.data.skip_bad
    assert load("--train.data.skip-bad").train.data.skip_bad


def test_an_option_wins_over_the_arms() -> None:
    config = load("--train.optim.lr 1e-5")  # also if it is TrainConfig's own default
    assert {config_of(config.train, t).optim.lr for t in config.trials} == {1e-5}
    assert len(config.trials) == len(PRESETS["builtin"]().trials)


def test_another_model_drops_the_presets_learning_rates() -> None:
    config = load("doctor --model m")
    assert {config_of(config.train, t).optim.lr for t in config.trials} == {OptimConfig.lr}
    given = load("doctor --model m --train.optim.lr 2e-6")
    assert {config_of(given.train, t).optim.lr for t in given.trials} == {2e-6}
    adapted = load("doctor --model m --train.lora.rank 8")
    assert {config_of(adapted.train, t).optim.lr for t in adapted.trials} == {1e-4}
    searched = load("--preset study --model m")
    assert searched.trials == PRESETS["study"]().trials


def test_other_benchmarks_drop_the_presets_context_length() -> None:
    assert load("").engine.max_model_len == load("score m").engine.max_model_len == 1024
    assert load("score m --benchmarks gsm8k").engine.max_model_len == 0
    given = load("score m --benchmarks gsm8k --engine.max-model-len 99")
    assert given.engine.max_model_len == 99


def test_presets_keep_their_engine_and_other_models_get_one_that_fits() -> None:
    kept = EngineSettings("float32", 1024, threads=1, kv_cache_gib=1.0, concurrency=64)
    for preset in ("builtin", "study", "debug"):
        assert load(f"--preset {preset}").engine == kept
    assert load("score m --benchmarks gsm8k").engine == EngineSettings()
    assert load("score m").engine == EngineSettings(max_model_len=1024)
    given = load("score m --benchmarks gsm8k --engine.threads 3 --engine.dtype float16").engine
    assert given == EngineSettings("float16", threads=3)


def test_a_gpu_is_used_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load("")
    assert (config.train.workers.gpus, config.engine.gpus) == (1, 1)
    config = load("--train.workers.gpus 0 --engine.gpus 0.5")
    assert (config.train.workers.gpus, config.engine.gpus) == (0, 0.5)


def test_arms_and_seeds_choose_trials() -> None:
    config = load("--arms sft otr-k256 --seeds 3 4 5")
    assert [t.name for t in config.trials] == [
        f"{arm}-seed{seed}" for arm in ("sft", "otr-k256") for seed in (3, 4, 5)
    ]


def test_a_changed_preset_gets_a_name_of_its_own() -> None:
    first, second = load("--max-steps 7"), load("--max-steps 8")
    assert len({first.name, second.name, "builtin"}) == 3
    assert first.name == load("--train.max_steps 7").name
    assert load("--engine.port 9000 --output elsewhere").name == "builtin"


def test_train_has_one_trial_with_the_given_seed() -> None:
    config = load("train --train.objective.name sft --train.seed 5")
    (trial,) = config.trials
    assert config_of(config.train, trial).seed == 5
    assert config_of(config.train, trial).objective.name == "sft"


def test_a_setting_goes_to_the_arms_whose_objective_has_it() -> None:
    config = load("--train.objective.label-smoothing 0.1 --train.objective.temperature 1.0")
    made = {trial.arm: config_of(config.train, trial).objective for trial in config.trials}
    assert made["sft"] == Objective("sft", label_smoothing=0.1)
    assert made["dft"] == Objective("dft")
    assert made["otr-k16"] == Objective(num_samples=16, temperature=1.0)
    other = load("train --train.objective.name power --train.objective.exponent 2")
    assert other.train.objective == Objective("power", exponent=2.0)


def test_a_wrong_argument_of_the_chat_template_is_told_its_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.parse(["train", "--chat-template-args", "thinking"])
    assert "NAME=VALUE, as in enable_thinking=false" in capsys.readouterr().err


def test_the_help_names_the_objectives_and_whose_setting_an_option_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        cli.parse(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "otr: K, the number of tokens drawn per position." in text
    assert "power: The power of the target's probability" in text
    assert all(name in text for name in names())


def test_score_takes_the_model_as_an_argument() -> None:
    config = load("score runs/x --benchmarks gsm8k")
    assert (config.train.model.path, config.benchmarks) == ("runs/x", ("gsm8k",))
    assert config.name.startswith("score-")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--arms otr-k26", "no arm 'otr-k26': did you mean 'otr-k256'?"),
        (
            "--train.objective.num-samples 0",
            "train.objective.num_samples is 0: use an integer >= 1",
        ),
        ("--train.objective.temperature 0", "train.objective.temperature is 0.0: use a number > 0"),
        ("--train.objective.num-samples 4", "otr-k16 and otr-k256 are the same"),
        ("--train.seed 3", "--seeds"),
        ("--benchmarks gsm9k", 'unknown benchmark "gsm9k"; did you mean "gsm8k"'),
        ("--benchmarks gsm8k:items=9-2", 'items is "9-2"; expected FIRST-LAST in this order'),
        ("--search.benchmark gsm8k:item=1-9", 'unknown option "item"; did you mean "items"'),
        ("--seeds 1 1", "seed 1 is given twice: give each of --seeds once"),
        ("--seeds -1", "arms.sft: seed is -1: use an integer from 0"),
        ("--train.lora.alpha 8", "train.lora.alpha is given, but train.lora.rank is 0"),
        ("--train.optim.lr inf", "train.optim.lr is inf: use a number > 0"),
        (
            "--train.objective.exponent 2",
            "train.objective.exponent is 2.0, but it is a setting of power, not of",
        ),
        (
            "train --train.objective.name sft --train.objective.num-samples 16",
            "train.objective.num_samples is 16, but it is a setting of otr, not of sft: leave it "
            r"out, or set one of sft's \(label_smoothing, z_loss\)",
        ),
        (
            "train --train.objective.z-loss 1e-4",
            "train.objective.z_loss is 0.0001, but it is a setting of sft",
        ),
        ("--name a/b", "name is 'a/b'"),
        ("--preset debug --config run.json", "exclude each other"),
    ],
)
def test_values_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(RUN_JSON)
    with pytest.raises(UsageError, match=message):
        load(line)


RUN_JSON = """{"config": {"name": "x", "benchmarks": ["gsm8k"], "trials": [{"arm": "sft"}],
"train": {"model": {"path": "m"}, "data": {"paths": ["d"]}}}}"""


def test_a_sweep_of_an_own_model_needs_benchmarks() -> None:
    own = "--model someone/tiny --data chats.jsonl"
    with pytest.raises(UsageError, match="to score someone/tiny on: give --benchmarks"):
        load(own)
    assert load(f"{own} --benchmarks gsm8k").benchmarks == ("gsm8k",)
    assert load(f"{own} --preset gsm8k").benchmarks == PRESETS["gsm8k"]().benchmarks
    for command in ("doctor", "train"):  # they score nothing
        assert load(f"{command} {own}").train.model.path == "someone/tiny"


def test_a_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell replaces ~ only at the beginning of a word; in a recipe nobody does."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ["sweep", "--train.model.path=~/m", "--train.data.paths", "~/a.jsonl", "hf:~x"]
    benchmarks = ["--benchmarks", "file:~/b.jsonl", "gsm8k"]
    config = cli.parse([*words, *benchmarks, "--output=~/runs", "--name", "a~"]).load()
    assert (config.output, config.name) == ("/home/me/runs", "a~")
    assert config.train.model.path == "/home/me/m"
    assert config.train.data.paths == ("/home/me/a.jsonl", "hf:~x")
    assert config.benchmarks == ("file:/home/me/b.jsonl", "gsm8k")
