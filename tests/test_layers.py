"""Imports run one way, pipelines -> tuning -> otr.training -> otr and pipelines -> evals."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"otr", "otr.training", "tuning", "evals", "pipelines"}
OTHERS = {"ray", "ray.train", "ray.tune", "ray.serve", "ray.data", "mlflow", "vllm"}
ALLOWED = {
    "otr": set(),
    "otr.training": {"otr", "ray", "ray.data", "ray.train"},
    "tuning": {"otr", "otr.training", "ray", "ray.tune", "ray.train"},
    "evals": {"ray", "ray.serve", "vllm"},
    "pipelines": OURS | OTHERS,
}


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return "otr.training" if parts[:2] == ("otr", "training") else parts[0]


def imported(tree: ast.AST) -> set[str]:
    """Every module named by an import statement, at the top or inside a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide the layer"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layers(module: str) -> set[str]:
    """The layers or watched packages that a dotted name lies in; the narrowest one."""
    inside = [p for p in OURS | OTHERS if module == p or module.startswith(p + ".")]
    return {max(inside, key=len)} if inside else set()


FILES = [
    p for layer in ("otr", "tuning", "evals", "pipelines") for p in (ROOT / layer).rglob("*.py")
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    layer = layer_of(path)
    found = {one for name in imported(ast.parse(path.read_text())) for one in layers(name)}
    wrong = found - ALLOWED[layer] - {layer}
    assert not wrong, f"{layer} may not import {', '.join(sorted(wrong))}"


def test_a_wrong_import_is_seen() -> None:
    tree = ast.parse("def f():\n    from otr.training.driver import fit\n    import ray.tune\n")
    assert {one for name in imported(tree) for one in layers(name)} == {"otr.training", "ray.tune"}
