"""Wrong programs that try to pass the tests in the sandbox; none does."""

import pytest

from evals.sandbox import runner

FORGERIES = {
    "writes to the result channel": """
import os
for descriptor in range(3, 256):
    for text in (b"passed", bytes(32)):
        try:
            os.write(descriptor, text)
        except OSError:
            pass
os._exit(0)
""",
    "reads every descriptor and sends back what it finds": """
import os
secrets = []
for descriptor in range(3, 256):
    try:
        os.set_blocking(descriptor, False)
        secrets.append(os.read(descriptor, 64))
    except OSError:
        pass
for descriptor in range(3, 256):
    for secret in secrets:
        try:
            os.write(descriptor, secret)
        except OSError:
            pass
os._exit(0)
""",
    "searches the sandbox's variables for the secret": """
import os, sys
frame, values = sys._getframe(), []
while frame:
    values += [*frame.f_locals.values(), *frame.f_globals.values()]
    frame = frame.f_back
for value in list(values):
    values += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
for secret in values:
    if isinstance(secret, bytes) and len(secret) == 32:
        for descriptor in range(3, 256):
            try:
                os.write(descriptor, secret)
            except OSError:
                pass
os._exit(0)
""",
    "raises the event of the end": "import os, sys\nsys.audit('sandbox.end')\nos._exit(0)",
    "calls the sandbox's own code": """
import sys
from types import FunctionType
own = sys._getframe(1)
own.f_globals['compile'] = lambda *_, **__: 'pass'
known = own.f_locals
own.f_globals['_take'] = lambda *_: (b'', b'')
again = FunctionType(own.f_code, own.f_globals)
again(known['home'], known['limits'], [], known['pipes'], known['prepared'])
""",
    "exits from the tests": "def f():\n    import sys\n    sys.exit(0)",
    "ends the process from the tests": "def f():\n    import os\n    os._exit(0)",
    "opens a string that would hide the tests": "def f(): return 1\nx = '''",
    "ends before the tests": "def f(): return 1\nraise SystemExit",
    "patches what the tests call": """
import builtins, math
builtins.abs, builtins.all, builtins.len = lambda _: 0, lambda _: True, lambda _: 1
math.isclose = lambda *_, **__: True
def f(): return 1
""",
    "patches what assert raises": """
import builtins
builtins.AssertionError = builtins.BaseException = KeyError
def f(): return 1
""",
    "patches how the tests are run": """
import builtins, sys
builtins.compile = lambda *_, **__: "pass"
builtins.exec = builtins.isinstance = lambda *_: None
sys.audit = sys.excepthook = sys.__excepthook__ = lambda *_: None
def f(): return 1
""",
}
TESTS = """
import math
assert abs(f() - 2) < 0.5
assert all([f() == 2]) and len([f()]) == 1
assert math.isclose(f(), 2)
"""


@pytest.mark.parametrize("attack", FORGERIES)
def test_a_forged_pass_fails_and_a_right_program_passes(layers, attack) -> None:
    assert not runner.run(FORGERIES[attack], tests=TESTS).passed
    assert runner.run("def f(): return 2", tests=TESTS).passed


def test_tests_see_the_program_but_not_its_changes_to_python() -> None:
    program = "import math, builtins\nbuiltins.len = None\nmath.pi = 3\nclass A: x = 1\n"
    result = runner.run(program, tests="import math\nassert len('a') == A.x and math.pi != 3")
    assert result.passed, result.stderr
    assert not runner.run("def f(): return 1", tests="import no_such_module").passed
