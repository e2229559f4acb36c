"""`otr score show`: the answers that are asked for, and the nearest name where there is none."""

from pathlib import Path

import pytest

from evals.records import write_answers
from pipelines import cli, show_scores
from pipelines.config.options import UsageError

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
            answer("q/2", 0, False, f"{trial} goes on", finish_reason="length"),
        ]
        write_answers(folder / "gsm8k.parquet", rows)
        write_answers(folder / "bbh.parquet", [answer("b", 0, True, "\x1b[2J\u202eyes")])
    return tmp_path


def shown(output: Path, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert show_scores.main(["mine", "--output", str(output), *line.split()]) == 0
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
    ("line", "count", "there", "missing"),
    [
        ("--wrong", 4, "says 41", "says 42"),
        ("--right", 2, "says 42", "says 41"),
        ("--truncated", 2, "wrong, length", "says"),
        ("--item q/2", 2, "prompt of q/2", "prompt of q/1"),
        ("--trial base", 3, "sample 1: wrong", "sft"),
    ],
)
def test_only_what_is_asked_for(
    output: Path, capsys, line: str, count: int, there: str, missing: str
) -> None:
    said = shown(output, f"--task gsm8k {line}", capsys)
    assert said.startswith(f"{count} of ")
    assert there in said and missing not in said


def test_what_a_model_wrote_does_not_steer_the_terminal(output: Path, capsys) -> None:
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
def test_a_wrong_name_is_told_with_the_nearest(output: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        show_scores.main([*line.split(), "--output", str(output)])


def test_a_command_line_that_makes_no_sense(output: Path, capsys) -> None:
    with pytest.raises(UsageError, match="leave nothing"):
        show_scores.main(["mine", "--wrong", "--right"])
    assert cli.main(["score", "show"]) == 2
    assert "give a run" in capsys.readouterr().err


def test_a_file_that_is_no_parquet_is_named(output: Path) -> None:
    (output / "mine" / "scores" / "base" / "gsm8k.parquet").write_text("{}")
    with pytest.raises(ValueError, match=r"gsm8k\.parquet holds no answers"):
        show_scores.main([str(output / "mine"), "--task", "gsm8k"])
