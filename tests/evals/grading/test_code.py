"""Extraction of the program from an answer, in the styles in which models write one."""

import asyncio
import time
from typing import Any

import pytest

from evals.benchmark import Item
from evals.grading import code, extract_code
from evals.sandbox import SandboxResult
from tests.assets.code_styles import STYLES

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


def test_an_answer_may_be_as_deep_as_python_reads() -> None:
    chain = "".join(f"a{n} = a{n - 1}\n" for n in range(1, 3000))
    program = extract_code(
        f"```python\na0 = 1\n{chain}def f():\n    return a2999\n```", names=["f"]
    )
    assert program.startswith("a0 = 1\n") and "a2998\n" in program
    terms = " + ".join(["x"] * 600)
    program = extract_code(f"```python\ndef f(x):\n    raise ValueError({terms})\n```", names=["f"])
    assert "ValueError" in program


def test_an_item_may_set_its_cpu_seconds_and_memory(monkeypatch) -> None:
    given = []

    def run(program: str, **limits) -> SandboxResult:
        given.append((limits["cpu_seconds"], limits["memory_mb"]))
        return SandboxResult("failed")

    monkeypatch.setattr(code.runner, "run", run)
    code.code_passes(Item("a", "", ""), "x = 1")
    code.code_passes(Item("b", "", "", meta={"cpu_seconds": 30, "memory_mb": 100}), "x = 1")
    assert given == [(code.CPU_SECONDS, code.runner.MEMORY_MB), (30, 100)]


PROBLEM = (
    "from typing import List\nimport math\n\nSIDES: List[int] = []\nfor n in range(3):\n"
    "    SIDES.append(n)\n\n\ndef helper(x):\n    return x ** 2\n\n\n"
    "def solve(r):\n    return round(math.pi * helper(r) + SIDES[2], 2)\n"
)
TESTS = "assert solve(1) == 5.14\nassert solve(0) == 2\n"


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_in_any_style_has_the_program(style) -> None:
    answer = STYLES[style](PROBLEM, "solve")
    program = extract_code(answer, names=code.names_in_tests(TESTS))
    exec(f"{program}\n{TESTS}", {"__name__": code.MODULE})


HELPERS = {
    "a helper in a later block": (
        "```python\ndef solve(x):\n    return twice(x)\n```\nwith\n"
        "```python\ndef twice(x):\n    return 2 * x\n```"
    ),
    "an import in an earlier block": (
        "```python\nimport operator\n```\n"
        "```python\ndef solve(x):\n    return operator.mul(x, 2)\n```"
    ),
    "a value that statements fill": (
        "```python\nTABLE = {}\nTABLE[1] = 2\nTABLE.update({3: 6})\n"
        "if True:\n    LAST = 6\n\ndef solve(x):\n    return TABLE[x]\n```"
    ),
    "a setting": (
        "```python\nimport sys\nsys.setrecursionlimit(5000)\n\ndef solve(x):\n"
        "    assert sys.getrecursionlimit() == 5000\n    return 2 * x\n```"
    ),
    "names that are looked up": (
        "```python\ndef double(x):\n    return 2 * x\n\ndef solve(x):\n"
        "    return globals()['dou' + 'ble'](x)\n```"
    ),
    "a function that sets a name": (
        "```python\ndef fill():\n    global FACTOR\n    FACTOR = 2\n\nfill()\n\n"
        "def solve(x):\n    return FACTOR * x\n```"
    ),
    "a value before the function, in prose": (
        "The factor first.\n\nFACTOR = 2\n\ndef solve(x):\n    return FACTOR * x\n\nThat is it!"
    ),
    "a try around an import": (
        "```python\ntry:\n    import no_such_module as m\nexcept ImportError:\n    m = None\n\n"
        "def solve(x):\n    return 2 * x if m is None else 0\n```"
    ),
    "a decorator": (
        "```python\nfrom functools import lru_cache\n\n@lru_cache(None)\ndef solve(x):\n"
        "    return 2 * x\n```"
    ),
    "a function by assignment": "```python\nsolve = lambda x: 2 * x\n```",
    "a class and its base": (
        "```python\nclass A:\n    k = 2\n\nclass B(A):\n    pass\n\ndef solve(x):\n"
        "    return B.k * x\n```"
    ),
    "a wrong version first": (
        "```python\ndef solve(x):\n    return x\n```\nNo:\n"
        "```python\ndef solve(x):\n    return 2 * x\n```"
    ),
    "a version that is not written yet, behind it": (
        "```python\ndef solve(x):\n    return 2 * x\n```\nIts head:\n"
        "```python\ndef solve(x):\n    raise NotImplementedError('soon')\n```"
    ),
    "a helper and prose before the function, no fences": (
        "First a helper:\n\ndef twice(x):\n    return 2 * x\n\nNow it's easy:\n\n"
        "def solve(x):\n    return twice(x)\n\nDone!"
    ),
    "prose inside the block": (
        "```python\nSolution:\n\ndef solve(x):\n    return 2 * x\n\nDone!\n```"
    ),
}


@pytest.mark.parametrize(
    "answer",
    [
        "    return x + 1\n",
        "return x + 1",
        "```python\nasync def f(x):\n    return x + 1\n```",
        "async def f(x):\n    return x + 1\n\nasync def g(x):\n    return x\n",
    ],
)
def test_an_answer_completes_an_async_function(answer) -> None:
    namespace: dict[str, Any] = {}
    exec(extract_code(answer, "async def f(x):\n    'Add one.'\n"), namespace)
    assert asyncio.run(namespace["f"](1)) == 2


@pytest.mark.parametrize("name", HELPERS)
def test_the_program_has_what_the_function_needs(name) -> None:
    program = extract_code(HELPERS[name], names=("solve",))
    exec(f"{program}\nassert [solve(1), solve(3)] == [2, 6]", {"__name__": code.MODULE})


@pytest.mark.parametrize("first", ["", " ", "   ", "    "])
def test_the_first_line_of_a_body_may_have_lost_its_indentation(first) -> None:
    body = f"{first}for n in x:\n        if n > 1:\n            return n\n    return 0\n"
    for text in (body, f"```python\n{body}```", f"{body}\nIt returns the first one.\n"):
        namespace: dict[str, Any] = {}
        exec(extract_code(text, "def f(x):\n    'Find it.'\n"), namespace)
        assert [namespace["f"]([1, 3]), namespace["f"]([1])] == [3, 0]


@pytest.mark.parametrize("margin", ["  ", "\t", "    "])
@pytest.mark.parametrize(
    "body", ["    y = x\n    return y + 1\n", "\ty = x\n\treturn y + 1\n", "y = x\nreturn y + 1"]
)
def test_a_body_fits_the_indentation_of_its_head(margin, body) -> None:
    namespace: dict[str, Any] = {}
    exec(extract_code(body, f"def f(x):\n{margin}'Add one.'\n"), namespace)
    assert namespace["f"](1) == 2


@pytest.mark.parametrize("outer", ["def make():", "class Solution:"])
def test_what_is_defined_inside_of_something_else_is_not_defined(outer) -> None:
    inner = "    def f(x):\n        return x\n"
    for text in (f"```python\n{outer}\n{inner}```", f"So:\n\n{outer}\n{inner}\nDone."):
        namespace: dict[str, Any] = {}
        exec(extract_code(text, names=["f"]), namespace)
        assert "f" not in namespace


def test_tests_may_call_what_stands_above_the_function_in_the_prompt() -> None:
    prompt = "def encode(x):\n    return x + 1\n\n\ndef decode(x):\n    '''Undo it.'''\n"
    for answer in ("```python\ndef decode(x):\n    return x - 1\n```", "    return x - 1\n"):
        program = extract_code(answer, prompt, names=("decode", "encode"))
        exec(f"{program}\nassert decode(encode(3)) == 3", {"__name__": code.MODULE})


def test_examples_are_left_out() -> None:
    text = "```python\ndef solve(x):\n    return x\n\nx = solve(1)\nprint(x)\nassert x == 2\n```"
    assert extract_code(text, names=("solve",)) == "def solve(x):\n    return x\n"


def test_a_base_model_that_runs_on_keeps_its_first_body() -> None:
    text = "    return x + 1\n\n\ndef other(y):\n    return y\n\n\ndef add(x):\n    return x\n```\n"
    namespace: dict = {}
    exec(extract_code(text, "def add(x):\n    '''Add.'''\n"), namespace)
    assert namespace["add"](1) == 2


@pytest.mark.parametrize(
    ("tests", "names"),
    [
        ("def check(candidate):\n    assert candidate(1) == 2\n\ncheck(add)\n", ("add",)),
        ("import math\nassert math.isclose(f(1), len('a'))", ("f",)),
        ("p = Pair(1, 2)\nassert first(p) == 1", ("Pair", "first")),
        ("exec('assert candidate', {'candidate': g})", ("g",)),
        ("assert broken(", ()),
        ("", ()),
    ],
)
def test_names_that_tests_use(tests, names) -> None:
    assert code.names_in_tests(tests) == names


def test_the_program_is_not_run_as_main() -> None:
    text = "```python\ndef f():\n    return __name__\n```"
    assert code.code_passes(Item("a", "", "", "assert f() != '__main__'"), text)


@pytest.mark.parametrize(
    "text", ["", "```", "```python\n```", "I don't know.", "\x00", "```\n" * 9]
)
def test_an_answer_without_code_is_wrong(text) -> None:
    assert not code.code_passes(Item("a", "", "", "assert f()"), text)
    assert not code.code_passes(
        Item("a", "", "", "assert f()", meta={"code_prompt": "def f():\n"}), text
    )


@pytest.mark.parametrize("line", ["    x = (", "x = (", "    y = [1,", "def f(", "x = 1 +"])
def test_lines_that_repeat_an_error_take_little_time(line) -> None:
    text = "def f(x):\n    return x\n\n" + f"{line}\n" * 2000
    started = time.process_time()
    for answer in (text, f"{line}\n" * 2000):
        for prompt in ("", "def f(x):\n    'Return it.'\n"):
            program = extract_code(answer, prompt, names=["f"])
            assert answer != text or program.startswith("def f(x):\n    return x\n")
    assert time.process_time() - started < 5  # seconds; they took up to 50


def test_a_version_that_is_cut_off_does_not_replace_a_whole_one() -> None:
    whole = "def f(n):\n    if n == 1:\n        return 0\n    return n\n"
    cut = "def f(n):\n    if n == 1:\n        return 0\n    for i in range(n,"
    program: dict[str, Any] = {}
    exec(extract_code(f"{whole}\n{cut}", names=["f"]), program)
    assert program["f"](3) == 3
    assert extract_code(cut, names=["f"]).strip().endswith("return 0")
