"""All canonical solutions of the code benchmarks pass their tests; empty functions fail."""

import pytest

from evals import tasks
from evals.grading import code_passes, grade_all

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NAMES = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")


@pytest.mark.parametrize("name", NAMES)
def test_canonical_solutions_pass_and_empty_functions_fail(name, benchmark_dir) -> None:
    benchmark = tasks.load(name, benchmark_dir)
    canonical = [
        (item, f"```python\n{item.meta.get('code_prompt', '')}{item.answer}\n```")
        for item in benchmark.items
    ]
    verdicts = grade_all(benchmark, canonical)
    wrong = [pair[0].id for pair, verdict in zip(canonical, verdicts, strict=True) if not verdict]
    assert wrong == []
    empty = [(item, f"```python\n{_empty(item)}\n```") for item in benchmark.items]
    assert sum(grade_all(benchmark, empty)) == 0


def test_a_program_that_patches_what_the_plus_tests_use_fails(benchmark_dir) -> None:
    """Unless the sandbox restores `copy`, each input is the empty list, which is sorted."""
    items = tasks.load("mbpp_plus", benchmark_dir).items
    (item,) = (item for item in items if "def heap_sort(" in item.answer)
    program = "import copy\ncopy.deepcopy = lambda given: [[]]\ndef heap_sort(iterable):\n"
    assert not code_passes(item, f"```python\n{program}    return iterable\n```")


def _empty(item) -> str:
    """Return the function without its body, or an empty program if the prompt has no function."""
    head = item.meta.get("code_prompt")
    return f"{head}    pass" if head else "pass"
