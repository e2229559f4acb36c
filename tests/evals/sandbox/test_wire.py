"""Tests that run in another interpreter than the program see its objects as if they did not."""

import pytest

from evals.sandbox import runner

RIGHT = {
    "a class": (
        "class Pair:\n    def __init__(s, a, b): s.a = a; s.b = b\n"
        "    def __eq__(s, o): return (s.a, s.b) == (o.a, o.b)\ndef f(x): return x.a",
        "p = Pair(1, 2)\nassert f(p) == 1 and p.b == 2 and p == Pair(1, 2) and p != Pair(2, 2)\n"
        "assert isinstance(p, Pair) and not isinstance(3, Pair)\np.a = 7\nassert f(p) == 7",
    ),
    "operators": (
        "class V:\n    def __init__(s, x): s.x = x\n    def __add__(s, o): return V(s.x + o.x)\n"
        "    def __mul__(s, k): return V(s.x * k)\n    def __matmul__(s, o): return s.x * o.x\n"
        "    def __repr__(s): return f'V({s.x})'\n    def __lt__(s, o): return s.x < o.x\n"
        "    def __contains__(s, y): return y == s.x\n    def __enter__(s): return s\n"
        "    def __exit__(s, *a): return False",
        "v = V(2) + V(3)\nassert repr(v) == 'V(5)' and (v * 2).x == 10 and v @ V(2) == 10\n"
        "assert V(1) < V(2) and 5 in v\nwith v as w: assert w.x == 5",
    ),
    "changed arguments": (
        "def f(rows, names):\n    rows[0].append(1)\n    names['a'] = 2\n    return rows",
        "rows, names = [[3]], {}\nfirst = rows[0]\nassert f(rows, names) is rows\n"
        "assert rows == [[3, 1]] and first is rows[0] and names == {'a': 2}",
    ),
    "a function of the tests": (
        "def f(g, x): return [g(y) for y in x]",
        "assert f(lambda y: y + 1, [1, 2]) == [2, 3]",
    ),
    "a generator": (
        "def f():\n    yield 1\n    yield 2",
        "assert list(f()) == [1, 2]\ng = f()\nassert next(g) == 1",
    ),
    "a coroutine": (
        "async def f(x): return x + 1",
        "import asyncio\nassert asyncio.run(f(1)) == 2",
    ),
    "an exception class": (
        "class E(ValueError): pass\ndef f(): raise E('bad')",
        "try:\n    f()\nexcept E as e:\n    assert str(e) == 'bad'\nelse:\n    assert False",
    ),
    "an exception of a library": (
        "import json\ndef f(): json.loads('{')",
        "import json\ntry:\n    f()\nexcept json.JSONDecodeError: pass\nelse: assert False",
    ),
    "the standard streams": (
        "def f(): print(int(input()) + 1)",
        "import contextlib, io, sys\nsys.stdin, out = io.StringIO('41'), io.StringIO()\n"
        "with contextlib.redirect_stdout(out): f()\nassert out.getvalue() == '42\\n'",
    ),
    "collections": (
        "from collections import *\nP = namedtuple('P', 'x y')\n"
        "def f(): return Counter('aab'), P(1, 2), deque([1]), defaultdict(list, a=[1]), {1}, 2j",
        "c, p, q, d, s, z = f()\nassert c == {'a': 2, 'b': 1} and p == (1, 2) and p.x == 1\n"
        "assert list(q) == [1] and d == {'a': [1]} and s == {1} and z == 2j",
    ),
    "a list with methods of its own": (
        "class L(list):\n    def push(s, x): s.append(x)",
        "s = L()\ns.push(3)\nassert s == [3] and len(s) == 1 and s[0] == 3",
    ),
    "arrays": (
        "import numpy as np\ndef f(): return np.arange(3), np.float64(2.5), np.bool_(True)",
        "import numpy as np\na, b, c = f()\nassert (a == np.arange(3)).all() and b == 2.5 and c",
    ),
    "numbers of a library": (
        "import fractions as r, decimal as d\ndef f(): return r.Fraction(1, 2), d.Decimal('1.5')",
        "assert f() == (0.5, 1.5)",
    ),
    "a match": (
        "import re\ndef f(): return re.match('a', 'a')",
        "assert f() is not None and f().group() == 'a'",
    ),
    "an enumeration": (
        "import enum\nclass C(enum.Enum):\n    A = 1\ndef f(): return C.A",
        "assert f() == C.A and f().value == 1",
    ),
    "values and modules": ("import math\nX = [1, 2]", "assert X == [1, 2] and math.pi > 3"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_tests_see_the_programs_objects(name) -> None:
    program, tests = RIGHT[name]
    result = runner.run(program, tests=tests)
    assert result.passed, result.stderr


def test_tests_see_the_program_but_not_its_changes_to_python() -> None:
    program = "import math, builtins\nbuiltins.len = None\nmath.pi = 3\nclass A: x = 1\n"
    result = runner.run(program, tests="import math\nassert len('a') == A.x and math.pi != 3")
    assert result.passed, result.stderr
    assert not runner.run("def f(): return 1", tests="import no_such_module").passed


def test_an_error_in_the_program_is_shown_with_its_line() -> None:
    result = runner.run("def f():\n    raise KeyError('x')", tests="f()")
    assert 'File "program.py", line 2, in f' in result.stderr
    assert 'File "tests.py", line 1' in result.stderr


def test_tests_that_change_a_module_do_not_change_it_for_the_next_program() -> None:
    changed = runner.run("x = 1", tests="import math\nmath.pi = 3\nassert math.pi == 3")
    assert changed.passed, changed.stderr
    assert runner.run("x = 1", tests="import math\nassert math.pi != 3").passed


def test_a_file_of_the_tests_is_gone_for_the_next_program() -> None:
    assert runner.run("x = 1", tests="open('a', 'w').write('x')").passed
    assert runner.run("x = 1", tests="import os\nassert os.listdir('.') == []").passed


def test_limits_hold_for_tests() -> None:
    endless = "while True: pass"
    assert runner.run("x = 1", tests=endless, cpu_seconds=1).reason == "timeout"
    assert runner.run("x = 1", tests="y = bytearray(1 << 30)", memory_mb=512).reason == "memory"
    assert runner.run("x = 1", tests="open('/etc/passwd')").reason == "violation"
    assert runner.run("x = 1", tests="assert x == 1").passed


def test_reasons_of_the_program_reach_the_verdict_through_the_tests() -> None:
    slow = "def f():\n    while True: pass"
    assert runner.run(slow, tests="f()", cpu_seconds=1).reason == "timeout"
    assert runner.run("def f(): return [0] * 10**9", tests="f()").reason == "memory"
    assert runner.run("def f(): return open('/etc/passwd')", tests="f()").reason == "violation"
    assert runner.run("1 / 0", tests="x = 1").reason == "failed"
