"""The command line: dispatch, help, old spellings and errors."""

import errno
import json
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from evals import tasks
from evals.settings import free_port
from otr.files import write_json
from pipelines import cli
from pipelines.config.commands import Score, Show, Train
from pipelines.config.presets import PRESETS
from pipelines.report import terminal
from pipelines.runtime import next_steps, run_directory
from tuning.space import Trial

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
        ("--columns prompt=a prompt=b", "prompt is given twice"),
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
    assert (
        captured.err == "error: train.optim.lr is -1.0: use a number > 0\n" and captured.out == ""
    )


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


@pytest.mark.parametrize("words", ["mine", "--model mine", "--model=mine --max-items 7"])
def test_score_takes_its_model_as_the_other_commands_do(words: str) -> None:
    command = cli.parse(["score", *words.split()])
    assert isinstance(command, Score) and command.load().train.model.path == "mine"


def test_a_name_that_is_taken_by_another_run_is_refused(tmp_path: Path) -> None:
    config = replace(PRESETS["builtin"](), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "builtin")
    assert run_directory.open_run(config, tmp_path / "builtin") == first, "the same run resumes"
    changes = r"settings \(train.optim.lr was 0.0003, is 0.1; max_items was 100, is 3\): choose"
    train = replace(config.train, optim=replace(config.train.optim, lr=0.1))
    changed = replace(config, max_items=3, train=train, output="elsewhere")
    with pytest.raises(ValueError, match=changes):
        run_directory.open_run(changed, tmp_path / "builtin")


def test_a_run_may_become_longer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(PRESETS["builtin"](), output=str(tmp_path))
    directory = tmp_path / "builtin"
    first = run_directory.open_run(config, directory)
    longer = replace(config, train=replace(config.train, max_steps=240))
    again = run_directory.open_run(longer, directory)
    assert again["id"] == first["id"] and again["config"]["train"]["max_steps"] == 240
    assert capsys.readouterr().out.splitlines()[-1].startswith("continues ")
    with pytest.raises(ValueError, match=r"train\.max_steps was 240, is 120"):
        run_directory.open_run(config, directory)
    other = replace(longer, max_items=3, train=replace(longer.train, max_steps=360))
    with pytest.raises(ValueError, match=r"train\.max_steps was 240, is 360; max_items was"):
        run_directory.open_run(other, directory)
    assert run_directory.open_run(longer, directory) == again


def test_a_run_that_can_t_become_longer_stays_as_it_is(tmp_path: Path) -> None:
    study = replace(PRESETS["study"](), output=str(tmp_path))
    first = run_directory.open_run(study, tmp_path / "study")
    with pytest.raises(ValueError, match="asha has stopped trials early: choose another --name"):
        run_directory.open_run(
            replace(study, train=replace(study.train, max_steps=240)), tmp_path / "study"
        )
    assert run_directory.open_run(study, tmp_path / "study") == first
    config = replace(PRESETS["debug"](), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "debug")
    last = tmp_path / "debug" / "trials" / config.trials[0].name / "train" / "step-000006"
    (last / "trainer").mkdir(parents=True)
    write_json(last / "trainer" / "state.json", {"step": 6, "world": 1, "dtype": "bfloat16"})
    longer = replace(config, train=replace(config.train, max_steps=12))
    with pytest.raises(ValueError, match="step-000006 holds weights rounded to bfloat16"):
        run_directory.open_run(longer, tmp_path / "debug")
    assert run_directory.open_run(config, tmp_path / "debug") == first


def test_a_run_has_an_id_that_no_other_run_has(tmp_path: Path) -> None:
    config = replace(PRESETS["builtin"](), output=str(tmp_path))
    first = run_directory.open_run(config, tmp_path / "builtin")
    shutil.rmtree(tmp_path / "builtin")
    assert run_directory.open_run(config, tmp_path / "builtin")["id"] != first["id"]


def test_a_dry_run_shows_the_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # torch makes its directory for compiled code when it is imported.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path.parent / "compiled"))
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


def test_the_next_commands_name_an_interpreter_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    page = tmp_path / "a page.html"
    score = shlex.split(next_steps.pipeline_command("score_checkpoint", tmp_path))
    assert Path(score[0]).absolute() == Path(sys.executable) and score[2] == str(tmp_path)
    done = subprocess.run([*score[:2], "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--benchmarks" in done.stdout
    opened = shlex.split(next_steps.browser_command(page))
    assert opened[1:] == ["-m", "webbrowser", str(page)] and opened[0] == score[0]


def test_the_next_commands_keep_output_and_benchmarks_and_use_otr_if_it_is_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("environment", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "otr").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "environment" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "environment"))
    config = replace(PRESETS["debug"](), output="out", benchmarks=("gsm8k", "mmlu"), max_items=100)
    assert next_steps.score_command("model", config) == (
        "otr score model --output out --benchmarks gsm8k mmlu"
    )
    usual = PRESETS["builtin"]()
    assert next_steps.score_command("model", usual) == "otr score model"
    train = replace(usual.train, model=replace(usual.train.model, path="org/other"))
    other = next_steps.score_command("model", replace(usual, train=train))
    assert other == "otr score model --benchmarks gsm8k"
    assert next_steps.pipeline_command("show_scores", "run") == "otr show run"
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert "score_checkpoint.py" in next_steps.score_command("model", config)


def test_what_is_trained_and_scored_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1 + 1", "answer": 2}\n' * 3)
    benchmark = tasks.load(f"file:{tmp_path / 'mine.jsonl'}", max_items=2)
    config = cli.parse(["train", "--model", "org/m", "--train.lora.rank", "4"]).load()
    terminal.print_choices(config, [benchmark])
    said = capsys.readouterr().out
    assert "trains LoRA of rank 4 of org/m, 120 steps, learning rate 0.0001" in said
    graded = 'graded as "math", since every answer is a number'
    assert f"scores on mine, 2 of 3 items, {graded}" in said
    whole, adapters = Trial("whole", {"lora.rank": 0}), Trial("adapters")
    terminal.print_choices(replace(config, trials=(whole, adapters)))
    assert "trains all weights or LoRA of rank 4 of org/m" in capsys.readouterr().out


def test_a_full_disk_is_named_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines import full_sweep

    def fail(command: object) -> int:
        with run_directory.log_errors(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(full_sweep, "run", fail)
    assert cli.main(["sweep"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said
    assert f"the disk of {tmp_path} is full: free space" in said and "another --output" in said


HOLDER = """
import sys, time
from pathlib import Path
from pipelines.runtime.run_directory import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_directory_has_one_process(tmp_path: Path) -> None:
    run_directory.check_free(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    message = rf"in use by process {holder.pid} on {socket.gethostname()}: wait .*another --name"
    with pytest.raises(ValueError, match=message):
        run_directory.check_free(tmp_path)
    with pytest.raises(ValueError, match=message), run_directory.hold(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with run_directory.hold(tmp_path):  # the kernel has released the lock
        pass
    run_directory.check_free(tmp_path)


def test_the_ui_names_the_page_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        store.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        store.executemany("INSERT INTO experiments VALUES (?, ?)", [(0, "Default"), (7, "otr")])
        store.commit()
    port = free_port()
    cli.main(["ui", "--output", str(tmp_path), "--port", str(port)])
    said = capsys.readouterr().out
    assert said == f"runs: http://127.0.0.1:{port}/#/experiments/7/runs\n"
    assert started[0][-1] == str(port)


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
        (KeyboardInterrupt(), 130, "stopped: run the same command again to resume"),
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
