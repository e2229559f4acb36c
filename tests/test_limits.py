"""Functions have at most 60 lines, files at most 300."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("otr", "tuning", "evals", "pipelines", "tests")
FUNCTION_LINES, FILE_LINES = 60, 300
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def too_long(text: str) -> list[str]:
    """What is over its limit: the file, then functions, those inside others too."""
    lines = len(text.splitlines())
    found = [f"the file has {lines} lines"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{node.name} has {lines} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lengths(path: Path) -> None:
    assert not too_long(path.read_text()), "split it by subject"


def test_one_line_too_many_is_seen() -> None:
    body = "    pass\n" * (FUNCTION_LINES - 1)
    assert not too_long("def f():\n" + body)
    assert too_long("class C:\n  async def f():\n    pass\n" + body) == ["f has 61 lines"]
    assert not too_long("pass\n" * FILE_LINES)
    assert too_long("pass\n" * (FILE_LINES + 1)) == ["the file has 301 lines"]
