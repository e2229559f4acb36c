"""`otr show`: the chosen answers, and the nearest name for an unknown one."""

import re
from pathlib import Path

import pytest

from evals.records import write_answers
from pipelines import cli

TRIALS = ("base", "sft-seed0")


def answer(item: str, sample: int, correct: bool, text: str, **changes: object) -> dict:
    return {
        "id": item,
        "sample": sample,
        "prompt": f"prompt of {item}",
        "rendered": f"<user>prompt of {item}",
        "answer": "42",
        "text": text,
        "finish_reason": "stop",
        "num_tokens": 3,
        "correct": correct,
        "extracted": text.split()[-1],
        **changes,
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A run of two models on two benchmarks."""
    for trial in TRIALS:
        folder = tmp_path / "mine" / "scores" / trial
        folder.mkdir(parents=True)
        rows = [
            answer("q/1", 0, True, f"{trial} says 42"),
            answer("q/1", 1, False, f"{trial} says 41"),
            answer("q/2", 0, False, f"{trial} is cut", finish_reason="length"),
        ]
        write_answers(folder / "gsm8k.parquet", rows)
        write_answers(folder / "bbh.parquet", [answer("b", 0, True, "\x1b[2J\u202eyes")])
    return tmp_path


def shown(output: Path, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["show", "mine", "--output", str(output), *line.split()]) == 0
    return capsys.readouterr().out


def test_without_a_task_there_is_a_table(output: Path, capsys) -> None:
    lines = [line.split() for line in shown(output, "", capsys).splitlines()]
    assert ["base", "gsm8k", "3", "1", "1"] in lines and [
        "sft-seed0",
        "bbh",
        "1",
        "1",
        "0",
    ] in lines


def test_an_answer_is_shown_with_its_prompt_and_verdict(output: Path, capsys) -> None:
    said = shown(output, "--task gsm8k", capsys)
    assert said.startswith("6 of 6 answers")
    assert said.count("<user>prompt of q/1") == 1, "once for all trials"
    for text in ("reference answer: 42", "base, sample 1: wrong, read as '41'", "base says 41"):
        assert text in said


@pytest.mark.parametrize(
    ("line", "count", "present", "absent"),
    [
        ("--wrong", 4, "says 41", "says 42"),
        ("--right", 2, "says 42", "says 41"),
        ("--truncated", 2, "wrong, length", "says"),
        ("--item q/2", 2, "prompt of q/2", "prompt of q/1"),
        ("--trial base", 3, "sample 1: wrong", "sft"),
    ],
)
def test_options_choose_answers(
    output: Path, capsys, line: str, count: int, present: str, absent: str
) -> None:
    said = shown(output, f"--task gsm8k {line}", capsys)
    assert said.startswith(f"{count} of ")
    assert present in said and absent not in said


def test_control_characters_in_answers_are_escaped(output: Path, capsys) -> None:
    said = shown(output, "--task bbh --trial base", capsys)
    assert "\\x1b[2J\\x202eyes" in said and "\x1b" not in said and "\u202e" not in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mime", "'mime': did you mean 'mine'"),
        ("mine --task gsm8", "no task 'gsm8' in this run: did you mean 'gsm8k'"),
        ("mine --task gsm8k --trial sft", "no trial 'sft' in this run: did you mean 'sft-seed0'"),
        ("mine --task gsm8k --item q/3", "no item 'q/3' in this run: did you mean 'q/[12]'"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest(
    output: Path, capsys, line: str, message: str
) -> None:
    assert cli.main(["show", *line.split(), "--output", str(output)]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mine --wrong --right", "exclude each other"),
        ("mine --wrong", "name the benchmark whose answers to show: --task TASK"),
    ],
)
def test_contradicting_options(output: Path, capsys, line: str, message: str) -> None:
    assert cli.main(["score", "show", *line.split(), "--output", str(output)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_has_to_be_named(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["show"])
    assert "RUN" in capsys.readouterr().err


def test_a_file_that_is_no_parquet_is_named(output: Path, capsys) -> None:
    (output / "mine" / "scores" / "base" / "gsm8k.parquet").write_text("{}")
    assert cli.main(["show", str(output / "mine"), "--task", "gsm8k"]) == 1
    assert "gsm8k.parquet" in capsys.readouterr().err
