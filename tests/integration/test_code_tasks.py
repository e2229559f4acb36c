"""All canonical solutions of the code benchmarks pass their tests, and emptied ones do not."""

import pytest

from evals import tasks
from evals.grading.answers import code_passes, grade_all

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
    """Without the sandbox's care each input would be the empty list, sorted already."""
    items = tasks.load("mbpp_plus", benchmark_dir).items
    (item,) = (item for item in items if "def heap_sort(" in item.answer)
    program = "import copy\ncopy.deepcopy = lambda given: [[]]\ndef heap_sort(iterable):\n"
    assert not code_passes(item, f"```python\n{program}    return iterable\n```")


def _emptied(item) -> str:
    """The function without its body, or no function where the prompt gives none."""
    head = item.meta.get("code_prompt")
    return f"{head}    pass" if head else "pass"
