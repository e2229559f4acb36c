"""The command line: dispatch, help, old spellings and errors."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.config.commands import Show, Train
from pipelines.config.presets import PRESETS
from pipelines.runtime import next_steps, run_directory

REPOSITORY = Path(__file__).parents[2]


def help_of(command: str, capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max-stpes 4", "--max-steps"),
        ("--lr 4", "--train.optim.lr"),
        ("--train.optm.lr 4", "--train.optim.lr"),
        ("--preset bultin", "'builtin'"),
        ("--train.objective.name oft", "invalid choice 'oft'"),
        ("--max-steps four", "four"),
        ("--max-items", "--max-items"),
        ("--columns a", "'a' is not of the form"),
        ("--seeds x", "--seeds"),
        ("stray", "stray"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    line: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sweep", *line.split()])
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split()) and captured.out == ""


def test_a_value_that_a_field_refuses_exits_with_2_and_one_line(
    capsys: pytest.CaptureFixture,
) -> None:
    assert cli.main(["sweep", "--train.optim.lr", "-1"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: optim.lr is -1.0: use a number > 0\n" and captured.out == ""


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["swep"])
    assert "sweep" in capsys.readouterr().err


def test_each_command_offers_only_its_own_options(capsys: pytest.CaptureFixture) -> None:
    score = help_of("score", capsys)
    assert "MODEL" in score and "--benchmarks" in score and "--train." not in score
    train = help_of("train", capsys)
    assert "--train.optim.lr" in train and "--no-serve-check" in train
    assert "--benchmarks" not in train and "--search." not in train and "--arms" not in train
    sweep = help_of("sweep", capsys)
    assert "--arms" in sweep and "--search.scheduler" in sweep and "--log-dir" not in sweep
    assert "Packed rows per forward pass" in sweep, "help texts are the fields' docstrings"
    assert "--cluster" in help_of("doctor", capsys) and "--cluster" not in sweep


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"otr \d+\.\d+.*\n", capsys.readouterr().out)


def test_old_spellings_work_with_a_notice(capsys: pytest.CaptureFixture) -> None:
    line = "--train.step-rows 16 --train.micro_rows=4 --train.save-every 5 --train.eval-every 6 "
    line += "--train.log-every 7 --train.data.row-length 64 --no-prove"
    command = cli.parse(["train", *line.split()])
    said = capsys.readouterr().err.splitlines()
    assert isinstance(command, Train) and not command.serve_check
    train = command.load().train
    assert (train.global_batch_size, train.micro_batch_size) == (16, 4)
    assert (train.checkpoint_interval, train.eval_interval, train.log_interval) == (5, 6, 7)
    assert train.data.sequence_length == 64
    assert len(said) == 7 and "--train.step-rows is now called --train.global-batch-size" in said[0]
    assert isinstance(cli.parse(["score", "show", "mine"]), Show)


def test_a_name_that_is_taken_by_another_run_is_refused(tmp_path: Path) -> None:
    config = replace(PRESETS["builtin"](), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "builtin")
    assert run_directory.open_run(config, tmp_path / "builtin") == first, "the same run resumes"
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_directory.open_run(replace(config, max_items=3), tmp_path / "builtin")


def test_a_run_has_an_id_that_no_other_run_has(tmp_path: Path) -> None:
    config = replace(PRESETS["builtin"](), output=str(tmp_path))
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
    config, _ = json.JSONDecoder().raw_decode(said)
    assert config["train"]["max_steps"] == 5 and config["engine"]["dtype"] == "float32"
    assert "2 trials on " in said and "trial otr-k16, seed 0: " in said
    example = said.partition("one example; [trained tokens] are in brackets:\n")[2]
    prompt, _, rest = example.partition("[")
    assert "user" in prompt and rest.partition("]")[0].strip(), "the prompt, then what is trained"
    assert [*tmp_path.iterdir()] == []


def test_the_next_commands_name_an_interpreter_that_exists(tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    score = shlex.split(next_steps.pipeline_command("score_checkpoint", tmp_path))
    assert Path(score[0]).absolute() == Path(sys.executable) and score[2] == str(tmp_path)
    done = subprocess.run([*score[:2], "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--benchmarks" in done.stdout
    opened = shlex.split(next_steps.browser_command(page))
    assert opened[1:] == ["-m", "webbrowser", str(page)] and opened[0] == score[0]


def test_the_ui_needs_a_store_and_a_free_port(
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
    assert said.count("\n") == 1 and f"port {port}" in said and "--port" in said


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("the engine\nfell over"), 1, "RuntimeError: the engine fell over"),
        (KeyboardInterrupt(), 130, "Interrupted. Run the same command again to resume."),
    ],
)
def test_an_unexpected_error_is_one_line_with_its_log(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    from pipelines import full_sweep

    def fail(command: object) -> int:
        with run_directory.log_errors(tmp_path):
            raise error

    monkeypatch.setattr(full_sweep, "run", fail)
    assert cli.main(["sweep"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert ("driver.log" in said) == (code == 1)
    assert "Traceback" in (tmp_path / "logs" / "driver.log").read_text()


@pytest.mark.parametrize("how", [["pipelines/full_sweep.py"], ["-m", "pipelines.full_sweep"]])
def test_it_runs_as_a_file_and_as_a_module(how: list[str]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *how, "--arms", "stf"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no arm 'stf': did you mean 'sft'?"
