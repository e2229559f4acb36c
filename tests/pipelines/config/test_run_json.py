"""run.json repeats a run, also one that an earlier version wrote."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from otr.loss.objective import Objective
from pipelines import cli
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.config.run_json import fingerprint, read_run
from pipelines.runtime import run_directory
from tuning.space import config_of

OLD_TRAIN = {
    "model": {
        "path": "models/mine",
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "attention": "auto",
    },
    "data": {
        "paths": ["a.jsonl"],
        "columns": {"prompt": "question", "completion": "answer"},
        "validation": [],
        "split": "train",
        "row_length": 512,
        "max_rejected": 0.05,
        "skip_bad": False,
    },
    "objective": {
        "name": "otr",
        "num_samples": 256,
        "mismatch_reward": -0.1,
        "reward_scale": 1.0,
        "temperature": 1.3,
        "estimator": "sampled",
    },
    "optim": {
        "lr": 1e-05,
        "warmup_steps": 10,
        "final_lr": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    },
    "lora": {"rank": 0, "alpha": 32.0, "targets": []},
    "memory": {"strategy": "auto", "gradient_checkpointing": False, "compile": False},
    "workers": {"count": 2, "cpus": 1, "gpus": 1},
    "max_steps": 120,
    "step_rows": 16,
    "micro_rows": 4,
    "log_every": 5,
    "eval_every": 40,
    "save_every": 20,
    "seed": 0,
}
"""`train` in a run.json of commit a038414, before options were renamed."""


def write(path: Path, config: Any) -> Path:
    path.write_text(json.dumps({"id": "0" * 32, "name": "mine", "config": config}))
    return path


def stored(config: SweepConfig) -> Any:
    return json.loads(json.dumps(asdict(config)))


def sweep(*words: str) -> SweepConfig:
    return cli.parse(["sweep", *words]).load()


def test_it_repeats_the_run(tmp_path: Path) -> None:
    config = sweep("--max-steps", "7", "--columns", "prompt=q", "completion=a")
    config = replace(config, output=str(tmp_path))
    run_directory.open_run(config, tmp_path / config.name)
    file = str(tmp_path / config.name / "run.json")
    assert sweep("--config", file) == config
    assert sweep("--config", str(tmp_path / config.name)) == config, "the run's directory"
    changed = sweep("--config", file, "--max-steps", "8")
    assert changed == replace(config, train=replace(config.train, max_steps=8))


def test_train_repeats_a_training_run_and_takes_the_settings_of_a_sweep(tmp_path: Path) -> None:
    single = cli.parse(["train", "--name", "mine", "--train.seed", "3"]).load()
    file = str(write(tmp_path / "run.json", stored(single)))
    assert cli.parse(["train", "--config", file]).load() == single
    file = str(write(tmp_path / "run.json", stored(sweep("--max-steps", "7"))))
    from_sweep = cli.parse(["train", "--config", file]).load()
    assert from_sweep.train.max_steps == 7 and from_sweep.name.startswith("train-")
    assert [trial.name for trial in from_sweep.trials] == ["train-seed0"]


def test_a_run_from_before_the_renaming_is_read(tmp_path: Path) -> None:
    old = {
        **stored(PRESETS["debug"]()),
        "train": OLD_TRAIN,
        "trials": [
            {"arm": "long", "overrides": {"data.row_length": 1024, "step_rows": 32}, "seed": 0},
            {"arm": "sft", "overrides": {"objective.name": "sft"}, "seed": 1},
        ],
    }
    config = read_run(write(tmp_path / "run.json", old))
    train = config.train
    assert (train.data.sequence_length, train.global_batch_size) == (512, 16)
    assert (train.micro_batch_size, train.log_interval) == (4, 5)
    assert (train.eval_interval, train.checkpoint_interval) == (40, 20)
    long, sft = (config_of(train, trial) for trial in config.trials)
    assert (long.data.sequence_length, long.global_batch_size) == (1024, 32)
    assert (sft.objective.name, sft.seed) == ("sft", 1)
    again = read_run(write(tmp_path / "run.json", stored(config)))
    assert again == config and fingerprint(again) == fingerprint(config)


def test_settings_without_effect_in_a_run_from_before_are_left_out(tmp_path: Path) -> None:
    """Every objective was stored with the settings of otr."""
    sft = {**OLD_TRAIN, "objective": {**OLD_TRAIN["objective"], "name": "sft", "num_samples": 16}}
    old = {**stored(PRESETS["debug"]()), "train": sft}
    assert read_run(write(tmp_path / "run.json", old)).train.objective == Objective("sft")
    new = stored(PRESETS["debug"]())
    new["train"]["objective"] = {"name": "oft"}
    with pytest.raises(ValueError, match=r"train\.objective\.name is 'oft': did you mean"):
        read_run(write(tmp_path / "run.json", new))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_stpes", 3, "'train.max_stpes': did you mean 'max_steps'"),
        ("max_steps", "3", "train.max_steps is '3': expected an integer"),
        ("max_steps", True, "train.max_steps is True: expected an integer"),
        ("data.columns", {"prompt": 3}, "train.data.columns.prompt is 3: expected a string"),
        ("model.chat_template_args", {"think": False}, "train.model.chat_template_args.think is F"),
        ("model", "m", "train.model is 'm': expected a table"),
        ("objective", {"estimator": "mean"}, "train.objective.estimator is 'mean': use one of"),
        ("objective", {"num_samples": 0}, "train.objective.num_samples is 0: use an integer >= 1"),
        ("max_steps", 0, "train.max_steps is 0: use at least 1"),
        ("model", {}, "train.model.path is missing, and has no default"),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    config = stored(PRESETS["debug"]())
    *parents, name = key.split(".")
    (config["train"][parents[0]] if parents else config["train"])[name] = value
    with pytest.raises(ValueError, match=message):
        read_run(write(tmp_path / "run.json", config))


def test_a_wrong_value_of_a_search_is_named(tmp_path: Path) -> None:
    config = stored(PRESETS["debug"]())
    config["search"]["space"] = {"optim.lr": 1e-4}
    with pytest.raises(ValueError, match=r"search\.space\.optim\.lr is 0\.0001: expected a string"):
        read_run(write(tmp_path / "run.json", config))
    config["search"]["space"], config["trials"][0]["overrides"] = {}, {"optim.lr": 1e-4}
    assert read_run(write(tmp_path / "run.json", config)).trials[0].overrides == {"optim.lr": 1e-4}


def test_another_file_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for content, message in (
        ("{}", r"other\.json is not the run\.json of a run: it has no config"),
        ("{", r"other\.json can't be read as JSON"),
        ('{"config": {"trian": 1}}', r"other\.json: unknown key 'trian': did you mean 'train'"),
    ):
        other.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_run(other)
    other.unlink()
    with pytest.raises(ValueError, match=rf"other\.json: no such file in {tmp_path}$"):
        read_run(other)
    for command in ("sweep", "train"):
        with pytest.raises(
            ValueError, match=r"has no run\.json: give the directory of a run, a run"
        ):
            cli.parse([command, "--config", str(tmp_path)]).load()
