"""`otr data show` prints records as the model sees them, and what is not used or rejected."""

import json
import re
from pathlib import Path

import pytest

from pipelines import cli
from tests.assets.tiny import make_tiny_model

RECORDS = [
    {"prompt": "2 + 2?", "completion": "4", "id": 7},
    {"messages": [{"role": "user", "content": "hi"}]},
    {"conversations": [{"from": "human", "value": "3 + 3?"}, {"from": "gpt", "value": "6"}]},
    {"text": "Once upon a time."},
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command, with a tiny model and two files."""
    folder = tmp_path_factory.mktemp("data")
    make_tiny_model(folder / "tiny")
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    (folder / "b.csv").write_text("prompt,completion\n4 + 4?,8\n5 + 5?\n")
    paths = [str(folder / "a.jsonl"), str(folder / "b.csv")]
    return ["data", "show", "--model", str(folder / "tiny"), "--data", *paths]


def test_records_sizes_and_unused_fields(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    [a] = [line.split() for line in out.splitlines() if "a.jsonl " in line and "record" not in line]
    assert a[1:4] == ["4", "1", "3"]  # records, rejected, examples
    [total] = [line.split() for line in out.splitlines() if "all sources " in line]
    assert total[2:5] == ["6", "2", "4"] and total[-2:] == ["100.0", "%"]
    bins = re.findall(r"^ \d+ to \d+ +(\d+) +(█*)", out, re.MULTILINE)
    assert sum(int(count) for count, _ in bins) == 4
    most = max(int(count) for count, _ in bins)
    assert all(len(bar) == round(40 * int(count) / most) for count, bar in bins)
    assert out.count("======== record") == 3
    assert "a.jsonl, line 1\n" in out and "<|im_start|>assistant\n[4<|im_end|>]" in out
    assert "rejected as untrained: no answer of the assistant" in out
    assert "fields that neither otr nor the chat template uses (records): id (1)" in out


def test_one_record(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--record", "3", "4"]) == 0
    out = capsys.readouterr().out
    assert out.count("======== record") == 2
    assert "[Once upon a time.<|im_end|>]" in out and "b.csv, line 2" in out
    assert cli.main([*words, "--record", "3", "6"]) == 1
    assert (
        "no record 6: the data has 6 records, and the first is number 0" in capsys.readouterr().err
    )
    assert cli.main([*words, "--limit", "1"]) == 0
    assert capsys.readouterr().out.count("======== record") == 1


def test_what_is_rejected(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--rejected", "all"]) == 0
    out = capsys.readouterr().out
    assert "record 1, " in out and "a.jsonl, line 2" in out
    assert "record 5, " in out and "b.csv, line 3" in out and "rejected as broken" in out
    assert "rejected: 2 of 6 records" in out
    assert cli.main([*words, "--rejected", "over-long"]) == 0
    assert "rejected as over-long: 0 of 6 records" in capsys.readouterr().out
    assert cli.main([*words, "--rejected", "all", "--limit", "2"]) == 0
    assert "rejected: 1 of the first 2 records" in capsys.readouterr().out


def test_all_that_is_rejected_is_shown_even_if_nothing_is_left(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"prompt": "2 + 2?", "completion": 4}, {"prompt": "x", "completion": ""}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(record) + "\n" for record in bad))
    words = [*words[: words.index("--data") + 1], str(tmp_path / "bad.jsonl")]
    for asked in (["--rejected", "all"], ["--record", "0", "1"]):
        assert cli.main([*words, *asked]) == 1
        said = capsys.readouterr()
        assert "bad.jsonl, line 1\nrejected as broken: completion is int '4'" in said.out
        assert "bad.jsonl, line 2\nrejected as empty" in said.out
        assert "2 of 2 records can't be used" in said.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--limit=0", "--limit is 0: give at least 1"),
        ("--record=-1", "--record is -1: records are numbered from 0"),
    ],
)
def test_a_number_that_is_too_small_is_a_wrong_command_line(
    option: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, option]) == 2
    assert message in capsys.readouterr().err


def test_answers_without_an_end_are_warned_of(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert cli.main([*words, "--chat-template", template]) == 0
    assert "warning: 3 of 4 examples do not end with a token of its own" in (
        capsys.readouterr().out
    )
    assert cli.main(words) == 0
    assert "warning" not in capsys.readouterr().out
