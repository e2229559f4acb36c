"""Benchmarks by name and from files: the published data, their graders, errors in one line."""

import itertools
import json
import os
from pathlib import Path

import pytest

from evals import tasks
from evals.benchmark import Decoding
from evals.grading import grade_all

SIZES = {"gsm8k": 1319, "math500": 500, "humaneval": 164, "mbpp": 500, "bbh": 6511}


@pytest.fixture(params=SIZES)
def benchmark(request):
    """A built-in benchmark with its published items."""
    folder = os.environ.get(tasks.FOLDER_VARIABLE)
    if not folder:
        pytest.skip(f"{tasks.FOLDER_VARIABLE} does not point to the published files")
    return tasks.load(request.param, folder)


def test_every_module_is_a_benchmark() -> None:
    assert set(SIZES) <= set(tasks.names())


def test_published_items_are_complete(benchmark) -> None:
    assert len(benchmark.items) == SIZES[benchmark.name]
    assert len({item.id for item in benchmark.items}) == len(benchmark.items)
    assert all(item.prompt.strip() and item.answer.strip() for item in benchmark.items)
    assert all(bool(item.tests) == (benchmark.domain == "code") for item in benchmark.items)


def test_published_answers_are_right_and_empty_ones_wrong(benchmark) -> None:
    items = tasks.load(benchmark.name, max_items=12 if benchmark.domain == "code" else 60).items
    answer = {
        "mathematics": "First 1, then \\boxed{%s}.",
        "code": "```python\n%s\n```",
        "reasoning": "Think.\nSo the answer is %s.",
    }[benchmark.domain]
    right = [(item, answer % (item.meta.get("code_prompt", "") + item.answer)) for item in items]
    assert all(grade_all(benchmark, right))
    assert not any(grade_all(benchmark, [(item, "") for item in items]))


def test_answers_to_other_items_are_wrong(benchmark) -> None:
    items = tasks.load(benchmark.name, max_items=12 if benchmark.domain == "code" else 40).items
    shifted = [
        (item, f"So the answer is {other.answer}.")
        for item, other in zip(items, (*items[1:], items[0]), strict=True)
        if item.answer != other.answer
    ]
    assert sum(grade_all(benchmark, shifted)) <= len(shifted) * 0.05


def test_max_items_spreads_over_the_whole(benchmark) -> None:
    thin = tasks.load(benchmark.name, max_items=27)
    assert len(thin.items) == 27
    assert thin.items[0] == benchmark.items[0]
    places = [benchmark.items.index(item) for item in thin.items]
    gaps = [b - a for a, b in itertools.pairwise([*places, len(benchmark.items)])]
    assert max(gaps) - min(gaps) <= 1
    assert tasks.load(benchmark.name, max_items=10**6).items == benchmark.items


def _file(folder: Path, *rows: dict | str) -> str:
    path = folder / "mine.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"file:{path}"


def test_own_benchmark(tmp_path) -> None:
    name = _file(
        tmp_path,
        {"prompt": "1/2?", "answer": "0.5", "grader": "math", "id": "half"},
        {"prompt": "Which?", "answer": "(B)", "grader": "choice"},
        {"prompt": "Sort b a", "answer": "a b"},
        {"prompt": "def one():", "tests": "assert one() == 1"},
    )
    benchmark = tasks.load(name)
    assert (benchmark.name, benchmark.domain) == ("mine", "other")
    assert [item.id for item in benchmark.items] == ["half", "2", "3", "4"]
    good = ["\\boxed{\\frac12}", "The answer is B.", "a b", "    return 1"]
    bad = ["\\boxed{2}", "The answer is A.", "b a", "    return 2"]
    assert grade_all(benchmark, list(zip(benchmark.items, good, strict=True))) == [True] * 4
    assert grade_all(benchmark, list(zip(benchmark.items, bad, strict=True))) == [False] * 4
    assert tasks.load(f"{name}#renamed").name == "renamed"


def test_domain_follows_the_grader(tmp_path) -> None:
    rows = [{"prompt": "p", "answer": 7, "grader": "math"}] * 2
    assert tasks.load(_file(tmp_path, *rows)).domain == "mathematics"
    rows[1] = {**rows[1], "domain": "mathematics"}
    assert tasks.load(_file(tmp_path, *rows)).items[1].answer == "7"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"mine\.jsonl, line 2: not valid JSON"),
        ("[1]", r"line 2: expected a JSON object, found list"),
        ({"answer": "1"}, r'line 2: field "prompt" is missing'),
        ({"prompt": 3, "answer": "1"}, r'line 2: field "prompt" is 3, expected str'),
        ({"prompt": "p"}, r'row 2: field "answer" is missing'),
        ({"prompt": "p", "answer": "1", "grader": "magic"}, r'row 2: field "grader" is \'magic\''),
        ({"prompt": "p", "grader": "code"}, r'row 2: field "tests" is missing'),
        ({"prompt": "p", "answer": "1", "domain": "law"}, r'row 2: field "domain" is \'law\''),
        ({"prompt": "p", "answer": "1", "id": "1"}, r'the id "1" stands there more than once'),
    ],
)
def test_a_broken_file_is_told_with_line_and_field(tmp_path, row, message) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load(_file(tmp_path, {"prompt": "p", "answer": "1"}, row))


def test_what_can_not_be_found_is_told_with_the_remedy(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match='unknown benchmark "gsm9k"; did you mean "gsm8k"'):
        tasks.load("gsm9k", tmp_path)
    with pytest.raises(ValueError, match=r"no file .*gsm8k/test.jsonl: set OTR_BENCHMARKS"):
        tasks.load("gsm8k", tmp_path)
    with pytest.raises(ValueError, match=r"no file .*absent.jsonl"):
        tasks.load(f"file:{tmp_path}/absent.jsonl")
    monkeypatch.delenv(tasks.FOLDER_VARIABLE, raising=False)
    with pytest.raises(ValueError, match="set OTR_BENCHMARKS"):
        tasks.load("gsm8k")
    with pytest.raises(ValueError, match="no rows"):
        tasks.load(_file(tmp_path, ""))
    with pytest.raises(ValueError, match="max_items is 0"):
        tasks.load(_file(tmp_path, {"prompt": "p", "answer": "1"}), max_items=0)


@pytest.mark.parametrize("change", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}])
def test_decoding_that_makes_no_sense_is_refused(change) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Decoding(**{"max_tokens": 8, **change})
