"""Tests of the example answers and the links of a report."""

from dataclasses import replace
from pathlib import Path

import pytest

from evals.records import SCHEMA, write_answers
from pipelines.report import answers
from pipelines.report.leaderboard import BASE, Entry

BEST = Entry("sft-seed0", "sft", {"name": "sft"}, 1e-4, 0, "finished")


def answer(id: str, correct: bool, **changes: object) -> dict[str, object]:
    row = dict.fromkeys(SCHEMA.names, "text")
    row |= {"id": id, "sample": 0, "num_tokens": 3, "correct": correct, "prompt": f"ask {id}"}
    return row | {"finish_reason": "stop"} | changes


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run of which the trial gained the items a, b, c, d, lost e and kept f."""
    right = {BASE: "ef", BEST.trial: "abcdf"}
    for trial, ids in right.items():
        folder = tmp_path / "scores" / trial
        folder.mkdir(parents=True)
        rows = [answer(id, id in ids, text=f"<{trial}>") for id in "abcdef"]
        rows.insert(1, answer("a", "a" not in ids, sample=1))  # pass@2: the first answer is shown
        write_answers(folder / "sums.parquet", rows)
    return tmp_path


def test_examples_are_items_on_which_the_models_differ(directory: Path) -> None:
    found = answers.choose_examples(directory / "scores", BEST.trial, "sums")
    assert [each.base["id"] for each in found] == ["a", "b", "c", "e"]
    assert all(each.base["correct"] != each.trial["correct"] for each in found)
    assert all(each.base["sample"] == each.trial["sample"] == 0 for each in found)
    assert answers.choose_examples(directory / "scores", BEST.trial, "other") == []
    assert answers.choose_examples(directory / "scores", BASE, "sums") == []


def test_the_section_folds_the_examples_and_links_all_answers(directory: Path) -> None:
    section = answers.examples_section(directory, BEST, "sums")
    assert section.count("<details>") == 4 and "<details open" not in section
    assert "a: base wrong, sft-seed0 right" in section and "ask a" in section
    assert "&lt;sft-seed0&gt;" in section and "<sft-seed0>" not in section
    assert '<a href="scores/sft-seed0/sums.parquet">' in section
    assert answers.examples_section(directory, None, "sums") == ""
    assert answers.examples_section(directory, BEST, "other") == ""


def test_a_long_answer_is_shortened(directory: Path) -> None:
    file = directory / "scores" / BASE / "sums.parquet"
    write_answers(file, [answer("a", False, text="x" * 10_000, finish_reason="length")])
    section = answers.examples_section(directory, BEST, "sums")
    assert "x" * 1500 + " … (8,500 more characters)" in section
    assert "base wrong, cut off" in section


def test_only_files_that_exist_are_linked(directory: Path) -> None:
    assert 'href="scores"' in answers.files_section(directory)
    assert "logs" not in answers.files_section(directory)
    assert answers.files_section(directory / "scores") == ""
    inside = directory / "trials" / "x"
    assert "<a " not in answers.checkpoint_link(directory, str(inside))
    inside.mkdir(parents=True)
    assert '<a href="trials/x">' in answers.checkpoint_link(directory, str(inside))
    outside = replace(BEST, checkpoint=str(directory.parent)).checkpoint or ""
    assert answers.checkpoint_link(directory, outside) == f"<code>{outside}</code>"
