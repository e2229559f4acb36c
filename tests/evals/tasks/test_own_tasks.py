"""A user's own benchmarks: a file, a Python class, and their error messages."""

import json
import sys
from pathlib import Path

import pytest

from evals import tasks
from evals.grading import grade_all
from evals.jobs import make_jobs
from evals.settings import EngineSettings
from tests.assets.tiny import make_tiny_model


def _file(folder: Path, *rows: dict | str) -> str:
    path = folder / "mine.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"file:{path}"


def test_a_file_is_a_benchmark(tmp_path) -> None:
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


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "a"}) + "\n", encoding="utf-8-sig")
    assert tasks.load(f"file:{path}").items[0].prompt == "p"


@pytest.mark.parametrize(
    "tests",
    ["f(1)", "x = f(1)", "from solution import f\nf(1)", "x = f", "if f(1) != 2: raise ValueError"],
)
def test_tests_may_be_anything_that_runs(tmp_path, tests) -> None:
    assert tasks.load(_file(tmp_path, {"prompt": "p", "tests": tests})).items[0].tests == tests


def test_a_path_may_be_in_the_home_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _file(tmp_path, {"prompt": "p", "answer": "a"})
    assert tasks.load("file:~/mine.jsonl").items[0].prompt == "p"


def test_an_answer_may_continue_an_async_function(tmp_path) -> None:
    head = "async def f(x):\n    'Add one.'\n"
    tests = "import asyncio\nassert asyncio.run(f(1)) == 2"
    (item,) = tasks.load(_file(tmp_path, {"prompt": head, "tests": tests})).items
    assert grade_all(
        tasks.load(_file(tmp_path, {"prompt": head, "tests": tests})), [(item, "    return x + 1")]
    ) == [True]


def test_a_line_may_set_limits_for_its_code(tmp_path) -> None:
    line = {"prompt": "p", "tests": "assert f()", "cpu_seconds": 20, "memory_mb": 8000}
    (item,) = tasks.load(_file(tmp_path, line)).items
    assert (item.meta["cpu_seconds"], item.meta["memory_mb"]) == (20, 8000)
    for field, wrong in (("cpu_seconds", 0), ("memory_mb", 32), ("memory_mb", "1 GB")):
        with pytest.raises(ValueError, match=f'field "{field}" is'):
            tasks.load(_file(tmp_path, {**line, field: wrong}))


def test_domain_follows_the_grader(tmp_path) -> None:
    rows = [{"prompt": "p", "answer": 7, "grader": "math"}] * 2
    assert tasks.load(_file(tmp_path, *rows)).domain == "mathematics"
    rows[1] = {**rows[1], "domain": "mathematics"}
    assert tasks.load(_file(tmp_path, *rows)).items[1].answer == "7"


def test_numbers_are_graded_as_mathematics_unless_a_grader_is_named(tmp_path) -> None:
    rows = [{"prompt": "p", "answer": "1,041"}, {"prompt": "q", "answer": -0.5}]
    benchmark = tasks.load(_file(tmp_path, *rows))
    assert grade_all(benchmark, [(benchmark.items[0], "That makes 1041 in all.")]) == [True]
    assert benchmark.notes == ('graded as "math", since every answer is a number',)
    mixed = tasks.load(_file(tmp_path, *rows, {"prompt": "r", "answer": "Paris"}))
    assert [item.meta["grader"] for item in mixed.items] == ["math", "math", "exact"]
    assert mixed.notes == ('2 of 3 graded as "math", since those answers are numbers',)
    named = tasks.load(_file(tmp_path, {**rows[0], "grader": "exact"}))
    assert named.items[0].meta["grader"] == "exact" and named.notes == ()


def test_a_part_of_the_items_is_noted(tmp_path) -> None:
    name = _file(tmp_path, *({"prompt": f"{n}", "answer": "yes"} for n in range(7)))
    assert tasks.load(name, max_items=3).notes == ("3 of 7 items",)
    assert tasks.load(name, max_items=7).notes == ()


def test_a_file_without_its_prefix_is_recognised(tmp_path) -> None:
    path = _file(tmp_path, {"prompt": "p", "answer": "a"}).removeprefix("file:")
    with pytest.raises(ValueError, match=f'is a file: give "file:{path}"'):
        tasks.load(path)


CAPITALS = """
from evals.benchmark import Decoding, Item

class Capitals:
    def items(self):
        return [Item("france", "Capital of France?", "Paris"), Item("peru", "Of Peru?", "Lima")]
    def grade(self, item, text):
        return item.answer in text
    def decoding(self):
        return Decoding(max_tokens=32)

class Half:
    def items(self):
        return ["no item"]
    def grade(self, item, text):
        return True

class Wrong(Capitals):
    def items(self):
        return ["no item"]

class Forgotten(Capitals):
    def items(self):
        [Item("france", "Capital of France?", "Paris")]
"""


def test_a_class_of_three_methods_is_a_benchmark(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_capitals.py").write_text(CAPITALS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    benchmark = tasks.load("class:own_capitals:Capitals@3")
    assert (benchmark.name, benchmark.decoding.num_samples) == ("capitals@3", 3)
    verdicts = grade_all(benchmark, [(item, "It is Paris.") for item in benchmark.items])
    assert verdicts == [True, False]
    for address, message in (
        ("own_capitals:Half", "has no method decoding"),
        ("own_capitals:Wrong", "items\\(\\) returns 'no item', expected Item"),
        ("own_capitals:Forgotten", "items\\(\\) returns None, expected a list of Item"),
        ("own_capitals:Absent", 'has no class "Absent"'),
        ("own_nothing:Capitals", "No module named 'own_nothing'"),
        ("own_capitals", "not of the form"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.load(f"class:{address}")


def test_changing_the_file_of_a_rule_changes_the_identity_of_its_scores(
    tmp_path, monkeypatch
) -> None:
    module = tmp_path / "own_changing.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    model, identities = make_tiny_model(tmp_path / "model"), []
    for text in (CAPITALS, CAPITALS, CAPITALS.replace("item.answer in text", "True")):
        module.write_text(text)
        benchmark = tasks.load("class:own_changing:Capitals")
        (job,) = make_jobs(model, [benchmark], EngineSettings())
        identities.append(job.identity)
    assert identities[0] == identities[1] != identities[2]


def test_samples_are_drawn_at_temperature_one(tmp_path) -> None:
    name = _file(tmp_path, {"prompt": "p", "answer": "1"})
    benchmark = tasks.load(f"{name}@16")
    assert (benchmark.name, benchmark.metric) == ("mine@16", "avg@16")
    decoding = benchmark.decoding
    assert (decoding.num_samples, decoding.temperature, decoding.top_p) == (16, 1.0, 1.0)
    assert tasks.load(f"{name}#renamed@2").name == "renamed@2"
    assert tasks.load(name).decoding.temperature == 0
    with pytest.raises(ValueError, match="asks for 0 answers"):
        tasks.load(f"{name}@0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"mine\.jsonl, line 2: not valid JSON"),
        ("[1]", r"line 2: expected a JSON object, found list"),
        ({"answer": "1"}, r'line 2: field "prompt" is missing'),
        ({"prompt": 3, "answer": "1"}, r'line 2: field "prompt" is 3, expected str'),
        ({"prompt": "p"}, r'line 2: field "answer" is missing'),
        ({"prompt": "p", "answer": "1", "grader": "magic"}, r'line 2: .*"grader" is \'magic\''),
        ({"prompt": "p", "answer": "1", "grader": "maths"}, r'did you mean "math"'),
        ({"prompt": "p", "answer": "1", "grader": ["math"]}, r'"grader" is \[\'math\'\]'),
        ({"prompt": "p", "grader": "code"}, r'line 2: field "tests" is missing'),
        ({"prompt": "p", "answer": "1", "domain": "law"}, r'line 2: field "domain" is \'law\''),
        ({"prompt": "p", "answr": "1"}, r'line 2: unknown field "answr"; did you mean "answer"'),
        ({"prompt": " ", "answer": "1"}, r'line 2: field "prompt" is empty'),
        ({"prompt": "p", "answer": " ", "grader": "math"}, r"an empty answer is never right"),
        ({"prompt": "p", "answer": ""}, r"an empty answer is never right"),
        ({"prompt": "p", "answer": float("nan")}, r'"answer" is nan, expected a finite number'),
        ({"prompt": "p", "answer": True}, r'"answer" is True, expected str or number'),
        ({"prompt": "p", "answer": None}, r'"answer" is None, expected str'),
        ({"prompt": "p", "answer": ["a"]}, r'"answer" is \[\'a\'\], expected str'),
        ({"prompt": "p", "answer": 5, "grader": "exact"}, r"the grader \"exact\" compares text"),
        ({"prompt": "p", "answer": 2, "grader": "choice"}, r"needs the letter of an option"),
        ({"prompt": "p", "answer": "the owl", "grader": "choice"}, r"needs the letter"),
        ({"prompt": "(A) 1 (B) 2", "answer": "C", "grader": "choice"}, r"the options .* are A, B"),
        ({"prompt": "A. 1\nB. 2", "answer": "D", "grader": "choice"}, r"the options .* are A, B"),
        ({"prompt": "p", "tests": "assert ("}, r'"tests" is no Python program: .*, line 1'),
        ({"prompt": "p", "tests": "# none"}, r'"tests" is empty: every program would pass'),
        ({"prompt": "p", "tests": "import math"}, r'"tests" only defines names'),
        ({"prompt": "p", "tests": "N = [-1, 2]\ndef check(f):\n    assert f(1)"}, r"only defines"),
        ({"prompt": "p", "tests": "x=" + "-" * 100_000 + "1"}, r'"tests" is no Python program'),
        ('{"prompt": "p", "answer": ' + "9" * 5000 + "}", r"line 2: not readable as JSON .*digits"),
        ("[" * 100_000, r"line 2: not readable as JSON"),
        ("{", r"line 2: a JSON document on several lines; give one object per line"),
        ({"prompt": "p", "tests": ["x"]}, r'"tests" is \[\'x\'\], expected str'),
        ({"prompt": "p", "answer": "1", "tests": "x", "grader": "math"}, r"leave one of them out"),
        ({"prompt": "p", "answer": "1", "id": "1"}, r"has the id '1' more than once"),
    ],
)
def test_a_malformed_file_is_an_error_with_line_and_field(tmp_path, row, message) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.load(_file(tmp_path, {"prompt": "p", "answer": "1"}, row))


def test_a_missing_or_empty_file_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no file .*absent.jsonl"):
        tasks.load(f"file:{tmp_path}/absent.jsonl")
    with pytest.raises(ValueError, match="has no items"):
        tasks.load(_file(tmp_path, ""))
