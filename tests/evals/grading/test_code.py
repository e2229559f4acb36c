"""Extraction of the program from an answer, in the styles in which models write one."""

import pytest

from evals.benchmark import Item
from evals.grading import code, extract_code
from evals.sandbox import SandboxResult

HEAD = "import math\n\ndef helper(x):\n    return x\n\ndef area(r):\n    '''Area.'''\n"
BODY = "    return math.pi * helper(r) ** 2\n"
WHOLE = "def area(r):\n" + BODY
CHECK = "assert round(area(1), 2) == 3.14\n"


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        BODY + "\nThis multiplies pi by the square.\n",
        "return math.pi * helper(r) ** 2",
        WHOLE,
        f"Sure! Here it is:\n\n{WHOLE}\nIt's simple.",
        f"```python\n{WHOLE}```",
        f"Here:\n```\n{WHOLE}```\nUse it so:\n```python\nprint(area(2))\n```",
        f"```python\ndef area(r): return 0\n```\nBetter:\n```python\n{WHOLE}```",
        f"```python\n{WHOLE}",
        f"1. Do:\n   ```python\n   def area(r):\n   {BODY}   ```",
        f"```python\n{BODY}```",
    ],
)
def test_extract_code_with_a_head(text) -> None:
    exec(extract_code(text, HEAD) + "\n" + CHECK, {})


def test_extract_code_without_a_head() -> None:
    assert extract_code("Use `x`:\n```python\nx = 1\n```") == "x = 1\n"
    assert extract_code("x = 1") == "x = 1"
    assert (
        extract_code("Here you go:\ndef f():\n    return 1\nThat's all!")
        == "def f():\n    return 1"
    )


def test_an_item_may_set_its_cpu_seconds_and_memory(monkeypatch) -> None:
    given = []

    def run(program: str, **limits) -> SandboxResult:
        given.append((limits['cpu_seconds'], limits['memory_mb']))
        return SandboxResult("failed")

    monkeypatch.setattr(code.runner, "run", run)
    code.code_passes(Item("a", "", ""), "x = 1")
    code.code_passes(Item("b", "", "", meta={"cpu_seconds": 30, "memory_mb": 100}), "x = 1")
    assert given == [(code.CPU_SECONDS, code.runner.MEMORY_MB), (30, 100)]


