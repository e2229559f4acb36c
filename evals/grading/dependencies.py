"""The statements that names need: those that define them, and what these need in turn."""

import ast
from collections.abc import Iterable, Sequence

from evals.grading.statements import Source, Statement

# A program with one of these may use names that do not stand in its text.
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__"}
_NOT_FOR_SOLUTIONS = {"print", "input", "exit", "quit", "breakpoint"}
_SETTINGS = {"setrecursionlimit", "seed", "set_int_max_str_digits", "getcontext", "filterwarnings"}


def needed_statements(sources: Sequence[Source], names: Iterable[str]) -> list[Statement]:
    """Return the statements that names need, in order, with an import of `__future__` first.

    They are those that bind a needed name, change a needed object or change a setting of Python.
    Examples, and statements for a run as a script, are left out.

    Args:
        sources: the statements to choose from. If several sources define a name, the last counts.
        names: the names.
    """
    statements = [statement for source in sources for statement in source.statements]
    needed = _Needed(sources)
    needed.keep(each for each in statements if "*" in each.binds)
    needed.follow(names)
    if needed.seen & _DYNAMIC:
        needed.keep(each for each in statements if each.is_definition or each.is_assignment)
    before = -1
    while len(needed.kept) > before:
        before = len(needed.kept)
        for source in sources:
            needed.keep(needed.changes_in(source))
    future = [each for each in statements if "from __future__" in each.text]
    kept = needed.kept.difference(future)
    return [*future[:1], *(each for each in statements if each in kept)]


class _Needed:
    """The statements that names need, and those that these need.

    Attributes:
        kept: the statements.
        seen: the names that have been looked up.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.kept: set[Statement] = set()
        self.seen: set[str] = set()

    def keep(self, statements: Iterable[Statement]) -> None:
        """Add statements, and what they need."""
        todo = [*statements]
        while todo:
            statement = todo.pop()
            if statement not in self.kept:
                self.kept.add(statement)
                todo += self.binding(statement.uses | statement.binds)

    def follow(self, names: Iterable[str]) -> None:
        """Add the statements that bind names, and what they need."""
        self.keep(self.binding(names))

    def binding(self, names: Iterable[str]) -> list[Statement]:
        """Return the statements that bind names not seen before, of the last source of each."""
        return [found for name in names if name not in self.seen for found in self._look_up(name)]

    def _look_up(self, name: str) -> list[Statement]:
        self.seen.add(name)
        for source in reversed(self.sources):
            found = [s for s in source.statements if name in s.binds and not s.is_for_main]
            if any(not s.is_stub for s in found):
                return found
        return []

    def changes_in(self, source: Source) -> list[Statement]:
        """Return the statements of a source that change its needed objects, or a setting."""
        inside = [each for each in source.statements if each in self.kept]
        objects = {name for each in inside if not each.is_import for name in each.binds}
        setters = {name for each in inside if each.sets for name in each.binds}
        rest = (each for each in source.statements if not each.is_definition)
        return [each for each in rest if _changes(each, objects, setters)]


def _changes(statement: Statement, names: set[str], setters: set[str]) -> bool:
    """Return whether a statement changes an object with one of the names, or a setting of Python.

    Args:
        statement: the statement.
        names: of objects.
        setters: of functions that assign to names of the module.
    """
    if statement.uses & _NOT_FOR_SOLUTIONS or statement.is_for_main:
        return False
    for node in (inner for each in statement.nodes for inner in ast.walk(each)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in _SETTINGS or _root(node.func) in names:
                return True
        elif (isinstance(node, ast.Call) and _root(node.func) in setters) or (
            isinstance(node, ast.Attribute | ast.Subscript)
            and not isinstance(node.ctx, ast.Load)
            and _root(node) in names
        ):
            return True
    return False


def _root(node: ast.expr) -> str:
    """Return the name that an expression such as `a.b[0].c()` starts with; "" if it has none."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""
