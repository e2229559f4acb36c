"""All canonical solutions of the code benchmarks pass their tests, and emptied ones do not."""

import pytest

from evals import tasks
from evals.grading import grade_all

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NAMES = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")


@pytest.mark.parametrize("name", NAMES)
def test_canonical_solutions_pass_and_emptied_ones_fail(name, benchmark_dir) -> None:
    benchmark = tasks.load(name, benchmark_dir)
    canonical = [
        (item, f"```python\n{item.meta.get('code_prompt', '')}{item.answer}\n```")
        for item in benchmark.items
    ]
    verdicts = grade_all(benchmark, canonical)
    wrong = [pair[0].id for pair, verdict in zip(canonical, verdicts, strict=True) if not verdict]
    assert wrong == []
    emptied = [(item, f"```python\n{_emptied(item)}\n```") for item in benchmark.items]
    assert sum(grade_all(benchmark, emptied)) == 0


def test_a_program_that_patches_what_the_plus_tests_use_fails(benchmark_dir) -> None:
    """Each is answered by what it was given, and copies are told to be equal."""
    benchmark = tasks.load("mbpp_plus", benchmark_dir, max_items=8)
    answers = []
    for item in benchmark.items:
        name = item.answer.partition("def ")[2].partition("(")[0]
        program = (
            "import copy, math\ncopy.deepcopy = lambda given: []\n"
            f"math.isclose = lambda *a, **k: True\ndef {name}(*given): return []"
        )
        answers.append((item, f"```python\n{program}\n```"))
    assert sum(grade_all(benchmark, answers)) == 0


def _emptied(item) -> str:
    """The function without its body, or no function where the prompt gives none."""
    head = item.meta.get("code_prompt")
    return f"{head}    pass" if head else "pass"
