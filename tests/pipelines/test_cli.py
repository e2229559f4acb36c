"""The command line: what it makes of options, and how it says no."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from otr.config import OptimConfig
from pipelines import cli
from pipelines.config import run_json
from pipelines.config.options import UsageError, parse
from pipelines.config.presets import PRESETS, SweepConfig
from pipelines.runtime import next_steps, run_directory
from tuning.space import config_of

REPOSITORY = Path(__file__).parents[2]


def sweep(line: str) -> SweepConfig:
    return parse(line.split(), "otr sweep").config


def test_without_options_a_preset_is_what_it_is() -> None:
    assert sweep("") == PRESETS["builtin"]()
    assert sweep("--preset study") == PRESETS["study"]()


def test_short_flags_set_what_they_stand_for() -> None:
    config = sweep(
        "--data a.jsonl b.jsonl --columns prompt=question completion=answer --benchmarks gsm8k "
        "--max-items 50 --max-steps 20 --benchmark-dir data --name mine --model m"
    )
    data = config.train.data
    assert data.paths == ("a.jsonl", "b.jsonl")
    assert data.columns == {"prompt": "question", "completion": "answer"}
    assert data.validation == (), "the preset's validation set is of its own corpus"
    assert data.sequence_length == 1024, "and so is its row length"
    assert sweep("--data a --train.data.sequence-length 99").train.data.sequence_length == 99
    assert (config.benchmarks, config.max_items, config.train.max_steps) == (("gsm8k",), 50, 20)
    assert (config.benchmark_dir, config.name, config.train.model.path) == ("data", "mine", "m")


def test_dotted_options_take_both_spellings() -> None:
    assert sweep("--train.max-steps 7").train.max_steps == 7
    assert sweep("--train.max_steps=7").train.max_steps == 7
    assert sweep("--max_steps=7").train.max_steps == 7


def test_what_is_given_wins_over_the_arms() -> None:
    config = sweep("--train.optim.lr 1e-5")  # also where it is TrainConfig's own default
    assert {config_of(config.train, t).optim.lr for t in config.trials} == {1e-5}
    assert len(config.trials) == len(PRESETS["builtin"]().trials)


def test_another_model_has_no_use_for_the_presets_learning_rates() -> None:
    config = sweep("--model m")
    assert {config_of(config.train, t).optim.lr for t in config.trials} == {OptimConfig.lr}
    given = sweep("--model m --train.optim.lr 2e-6")
    assert {config_of(given.train, t).optim.lr for t in given.trials} == {2e-6}
    searched = sweep("--preset study --model m")
    assert searched.trials == PRESETS["study"]().trials


def test_what_has_a_gpu_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = sweep("")
    assert (config.train.workers.gpus, config.engine.gpus) == (1, 1)
    config = sweep("--train.workers.gpus 0 --engine.gpus 0.5")
    assert (config.train.workers.gpus, config.engine.gpus) == (0, 0.5)


def test_options_that_make_two_arms_the_same_are_refused() -> None:
    with pytest.raises(UsageError, match="otr-k16 and otr-k256 are the same"):
        sweep("--train.objective.num-samples 4")


def test_arms_and_seeds_choose_trials() -> None:
    config = sweep("--arms sft otr-k256 --seeds 3 4 5")
    assert [t.name for t in config.trials] == [
        f"{arm}-seed{seed}" for arm in ("sft", "otr-k256") for seed in (3, 4, 5)
    ]


def test_a_changed_preset_gets_a_name_of_its_own() -> None:
    first, second = sweep("--max-steps 7"), sweep("--max-steps 8")
    assert len({first.name, second.name, "builtin"}) == 3
    assert first.name == sweep("--train.max_steps 7").name
    assert sweep("--engine.port 9000 --output elsewhere").name == "builtin"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max-stpes 4", "unknown option --max-stpes: did you mean --max-steps?"),
        ("--lr 4", "unknown option --lr: did you mean --train.optim.lr?"),
        ("--train.optm.lr 4", "did you mean --train.optim.lr?"),
        ("--preset bultin", "no preset 'bultin': did you mean 'builtin'?"),
        ("--arms otr-k26", "no arm 'otr-k26': did you mean 'otr-k256'?"),
        ("--train.objective.num-samples 0", r"num_samples \(K\) is 0: use an integer >= 1"),
        ("--train.objective.temperature 0", r"temperature \(kappa\) is 0.0: use a number > 0"),
        ("--train.objective.name oft", "invalid choice 'oft'"),
        ("--max-steps four", "four"),
        ("--max-items", "--max-items"),
        ("--seeds x", "--seeds"),
        ("stray", "stray"),
        ("--train.seed 3", "--seeds"),
        ("--name a/b", "name is 'a/b'"),
    ],
)
def test_a_line_that_can_not_be_understood(
    line: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(line)
    assert cli.main(["sweep", *line.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.out == ""


def test_an_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["swep"]) == 2
    assert "did you mean 'sweep'?" in capsys.readouterr().err


def test_training_alone_has_one_trial_with_the_given_seed() -> None:
    line = "--train.objective.name sft --train.seed 5"
    config = parse(line.split(), "otr train", single="train").config
    (trial,) = config.trials
    assert config_of(config.train, trial).seed == 5
    assert config_of(config.train, trial).objective.name == "sft"


def test_run_json_repeats_the_run(tmp_path: Path) -> None:
    config = replace(sweep("--max-steps 7 --columns prompt=q completion=a"), output=str(tmp_path))
    run_directory.open_run(config, tmp_path / config.name)
    again = parse(["--config", str(tmp_path / config.name / "run.json")], "otr sweep").config
    assert again == config
    changed = parse(
        ["--config", str(tmp_path / config.name / "run.json"), "--max-steps", "8"], "otr sweep"
    ).config
    assert changed == replace(config, train=replace(config.train, max_steps=8))


def test_run_json_with_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    told = json.loads(json.dumps(asdict(sweep(""))))
    told["train"]["max_stpes"] = told["train"].pop("max_steps")
    (tmp_path / "run.json").write_text(json.dumps({"config": told}))
    with pytest.raises(ValueError, match=r"'train.max_stpes': did you mean 'max_steps'"):
        run_json.read_run(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"no run.json of a run"):
        run_json.read_run(tmp_path / "other.json")


def test_a_name_that_is_taken_by_another_run_is_refused(tmp_path: Path) -> None:
    config = replace(sweep(""), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "builtin")
    assert run_directory.open_run(config, tmp_path / "builtin") == first, "the same run goes on"
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_directory.open_run(replace(config, max_items=3), tmp_path / "builtin")


def test_a_run_has_an_id_that_no_other_run_has(tmp_path: Path) -> None:
    config = replace(sweep(""), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "builtin")
    shutil.rmtree(tmp_path / "builtin")
    assert run_directory.open_run(config, tmp_path / "builtin")["id"] != first["id"]


def test_a_dry_run_shows_the_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    line = ["--preset", "debug", "--max-steps", "5", "--output", str(tmp_path / "runs")]
    assert cli.main(["sweep", *line, "--dry-run"]) == 0
    said = capsys.readouterr().out
    told, _ = json.JSONDecoder().raw_decode(said)
    assert told["train"]["max_steps"] == 5 and told["engine"]["dtype"] == "float32"
    assert "2 trials on " in said and "trial otr-k16, seed 0: " in said
    example = said.partition("one example; [trained tokens] are in brackets:\n")[2]
    prompt, _, rest = example.partition("[")
    assert "user" in prompt and rest.partition("]")[0].strip(), "what is asked, then what is learnt"
    assert [*tmp_path.iterdir()] == []


def test_the_next_commands_name_an_interpreter_that_exists(tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    score = shlex.split(next_steps.pipeline_command("score_checkpoint", tmp_path))
    assert Path(score[0]).absolute() == Path(sys.executable) and score[2] == str(tmp_path)
    done = subprocess.run([*score[:2], "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--benchmarks" in done.stdout
    opened = shlex.split(next_steps.browser_command(page))
    assert opened[1:] == ["-m", "webbrowser", str(page)] and opened[0] == score[0]


def test_the_ui_without_a_store_or_a_port_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["ui", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no MLflow store" in said and "run a sweep first" in said
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["ui", "--output", str(tmp_path), "--port", port]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"port {port} of 127.0.0.1 can't be used" in said


def test_an_error_of_the_machine_is_one_line_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from pipelines import full_sweep

    def fail(argv: list[str]) -> int:
        with run_directory.log_errors(tmp_path):
            raise RuntimeError("the engine\nfell over")

    monkeypatch.setattr(full_sweep, "main", fail)
    assert cli.main(["sweep"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "RuntimeError: the engine fell over" in said and "driver.log" in said
    assert "Traceback" in (tmp_path / "logs" / "driver.log").read_text()


@pytest.mark.parametrize("how", [["pipelines/full_sweep.py"], ["-m", "pipelines.full_sweep"]])
def test_it_runs_as_a_file_and_as_a_module(how: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *how, "--preset", "debgu"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no preset 'debgu': did you mean 'debug'?"
