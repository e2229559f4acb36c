"""Imports run one way: pipelines -> tuning -> otr.training -> otr, and pipelines -> evals."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"otr", "otr.training", "tuning", "evals", "pipelines"}
LIBRARIES = {"ray", "ray.train", "ray.tune", "ray.serve", "ray.data", "mlflow", "vllm"}
ALLOWED = {
    "otr": set(),
    "otr.training": {"otr", "ray", "ray.data", "ray.train"},
    "tuning": {"otr", "otr.training", "ray", "ray.tune", "ray.train"},
    "evals": {"ray", "ray.serve", "vllm"},
    "pipelines": LAYERS | LIBRARIES,
}
COMMANDS = {
    "pipelines.full_sweep",
    "pipelines.train_one",
    "pipelines.score_checkpoint",
    "pipelines.show_scores",
    "pipelines.merge_adapter",
    "pipelines.doctor",
    "pipelines.ui",
}
FILES = [
    path
    for package in ("otr", "tuning", "evals", "pipelines")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def layer_of(module: str) -> str:
    """The layer that a module of ours belongs to."""
    return "otr.training" if module.startswith("otr.training") else module.partition(".")[0]


def imported(tree: ast.AST, *, at_import: bool = False) -> set[str]:
    """Every module named by an import statement; with `at_import`, outside of functions only."""
    names = set()
    nodes = list(ast.walk(tree))
    if at_import:
        inside = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.If)]
        later = {id(child) for node in inside for child in ast.walk(node)}
        nodes = [node for node in nodes if id(node) not in later]
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide the layer"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layers(module: str) -> set[str]:
    """The narrowest of the layers and watched libraries that a dotted name lies in, if any."""
    around = [p for p in LAYERS | LIBRARIES if module == p or module.startswith(p + ".")]
    return {max(around, key=len)} if around else set()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a circle in a directed graph, in order; empty if there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := visit(after, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    module = module_of(path)
    names = imported(ast.parse(path.read_text()))
    layer = layer_of(module)
    found = {one for name in names for one in layers(name)}
    wrong = found - ALLOWED[layer] - {layer}
    assert not wrong, f"{layer} may not import {', '.join(sorted(wrong))}"
    if module != "pipelines.cli":
        assert not names & COMMANDS, "a command is run by pipelines.cli, never imported"


def test_no_circle() -> None:
    """Neither modules nor packages import each other in a circle, inside functions or outside."""
    modules, packages = {}, {}
    for path in FILES:
        module, tree = module_of(path), ast.parse(path.read_text())
        if path.name != "__init__.py":  # they import their own modules
            # `import a.b` also runs a/__init__.py, but needs nothing of it.
            modules[module] = imported(tree, at_import=True) & MODULES - {module}
            package = module.rpartition(".")[0]
            others = {name for name in imported(tree) if name in MODULES}
            others = {
                n if (ROOT / n.replace(".", "/")).is_dir() else n.rpartition(".")[0] for n in others
            }
            packages.setdefault(package, set()).update(others - {package})
    assert not circle(modules)
    nested = {p: {q for q in qs if q.count(".") == 1} for p, qs in packages.items() if p.count(".")}
    assert not circle(nested)


def test_a_wrong_import_is_seen() -> None:
    tree = ast.parse("def f():\n    from otr.training.driver import fit\n    import ray.tune\n")
    assert {one for name in imported(tree) for one in layers(name)} == {"otr.training", "ray.tune"}
    assert not imported(tree, at_import=True)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert not circle({"a": {"b", "c"}, "b": {"c"}})
