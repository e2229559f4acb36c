"""The grader of mathematics on all published reference answers."""

import json
import os
from pathlib import Path

import pytest

from evals.benchmark import Item
from evals.grading import code_passes, math_equal
from tests.benchmarks import gold, grading

FOLDER = os.environ.get("OTR_BENCHMARKS")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not FOLDER, reason="OTR_BENCHMARKS does not name a folder of published files"
    ),
]

# The scorer of OlympiadBench has a tolerance per item, and accepts rounded numbers for formulas.
OLYMPIADBENCH_DIFFERS = {
    ("0.6054", r"\cos ^{10}(\frac{\pi}{10})"),
    (r"7.1 \cdot 10^{35}", r"7 \times 10^{35}"),
    (r"0.001, 7.1 \cdot 10^{35}", r"7 \times 10^{35}, 0.002"),
    ("0.002, 5.234", "0.003, 5.233"),
}


def folder(name: str) -> Path:
    path = Path(str(FOLDER)) / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.parametrize("name", gold.FILES)
def test_the_rates_of_errors_hold_on_reference_answers(name) -> None:
    answers = gold.golds(folder(f"{name}.jsonl").parents[1], name)
    row = grading.measure(name, answers, sample=500)
    assert row.faults() == [], row.misjudged


def test_scoring_examples_of_olympiadbench() -> None:
    cases = json.loads(folder("grader_cases/olympiadbench_scoring_examples.json").read_text())
    differs = set()
    for case in cases:
        for answer in case["Ans"]:
            text = answer["answer"]
            boxed = text if "boxed" in text else f"\\boxed{{{text}}}"
            if math_equal(boxed, case["GT"]) != answer["equal"]:
                differs.add((text, case["GT"]))
    assert differs == OLYMPIADBENCH_DIFFERS


def test_an_item_grades_its_own_answer() -> None:
    item = Item("a", "", "", tests="assert f(1) == 2")
    assert code_passes(item, "```python\ndef f(x):\n    return x + 1\n```")
    assert not code_passes(item, "```python\ndef f(x):\n    return x\n```")
