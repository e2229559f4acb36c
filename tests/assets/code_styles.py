"""Styles in which models write the solution of a code problem, for tests and benchmarks."""

import textwrap
from collections.abc import Callable


def _docstring(program: str, text: str) -> str:
    """Insert a docstring into the last function at the left margin."""
    lines = program.rstrip().split("\n")
    last = max(number for number, line in enumerate(lines) if line.startswith("def "))
    end = next(n for n in range(last, len(lines)) if lines[n].split("#")[0].rstrip().endswith(":"))
    body = lines[end + 1]
    doc = textwrap.indent(f'"""{text}"""', body[: len(body) - len(body.lstrip())])
    return "\n".join([*lines[: end + 1], doc, *lines[end + 1 :]]) + "\n"


def _fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code.rstrip()}\n```"


Style = Callable[[str, str], str]
"""(whole program, name of its last function) -> answer."""
STYLES: dict[str, Style] = {
    "fenced": lambda code, name: _fenced(code),
    "fenced, no language": lambda code, name: _fenced(code, ""),
    "fenced, py": lambda code, name: f"Sure!\n\n{_fenced(code, 'py')}\n\nThat's it.",
    "fenced with tildes": lambda code, name: f"~~~python\n{code}\n~~~",
    "four backticks": lambda code, name: f"````python\n{code}\n````",
    "fence after text": lambda code, name: f"Here is the code: ```python\n{code}\n``` Done.",
    "fence closed after the code": lambda code, name: f"```python\n{code.rstrip()}```",
    "CRLF": lambda code, name: _fenced(code).replace("\n", "\r\n"),
    "not closed": lambda code, name: f"```python\n{code}",
    "not opened": lambda code, name: f"{code.rstrip()}\n```\nThis is why it works.",
    "bare": lambda code, name: code,
    "bare in prose": lambda code, name: f"Here you go:\n\n{code}\n\nIt's right, isn't it?",
    "in a list": lambda code, name: f"1. Do:\n\n{textwrap.indent(_fenced(code), '   ')}\n\n2. Run.",
    "fence in the docstring": lambda code, name: _fenced(
        _docstring(code, f"Do it.\n\n```python\n{name}(1)\n```\n")
    ),
    "main block": lambda code, name: _fenced(
        f"{code}\nif __name__ == '__main__':\n    import sys\n    sys.exit({name}(input()))"
    ),
    "doctest": lambda code, name: _fenced(f"{code}\nimport doctest\ndoctest.testmod()"),
    "wrong example below": lambda code, name: _fenced(f"{code}\nassert {name}() == 1"),
    "example in the same block": lambda code, name: _fenced(f"{code}\nprint({name}(int(input())))"),
    "example in a second block": lambda code, name: (
        f"{_fenced(code)}\nUsage:\n{_fenced(f'print({name}(1, 2, 3, 4, 5, 6))')}"
    ),
    "tests in a second block": lambda code, name: (
        _fenced(code) + "\nTests:\n" + _fenced(f"def test_it():\n    assert {name}()\n\ntest_it()")
    ),
    "shell block after": lambda code, name: f"{_fenced(code)}\n{_fenced('pip install x', 'bash')}",
    "output block after": lambda code, name: f"{_fenced(code)}\nOutput:\n{_fenced('[1, 2]', '')}",
    "stub first": lambda code, name: (
        _fenced(f"def {name}(*args):\n    pass") + "\nFilled in:\n" + _fenced(code)
    ),
    "stub last": lambda code, name: (
        _fenced(code) + "\nIts signature:\n" + _fenced(f"def {name}(*args):\n    ...")
    ),
    "cut in an example": lambda code, name: f"```python\n{code}\nprint({name}([1.0, 2.",
    "cut in a later function": lambda code, name: (
        f"```python\n{code}\ndef t():\n    assert {name}([1"
    ),
    "thinking": lambda code, name: (
        f"<think>\n{_fenced(f'def {name}(*args): return None')}\nNo.\n</think>\n{_fenced(code)}"
    ),
    "imports in a block of their own": lambda code, name: (
        _fenced("import math\nfrom typing import *") + "\nThen:\n" + _fenced(code)
    ),
    "unneeded import of a missing module": lambda code, name: _fenced(
        f"import no_such_module\n{code}"
    ),
    "class around nothing": lambda code, name: _fenced(f"class Solution:\n    pass\n\n{code}"),
}
