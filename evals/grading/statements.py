"""Python text as statements, with the names of the module that each binds and uses."""

import ast
import re
import symtable
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

STATEMENT_START = re.compile(
    r"^(?:from [\w.]+ import|import \w|(?:async )?def \w|class \w|@\w)", re.MULTILINE
)
"""The start of an import or a definition, at the beginning of a line. Prose has none."""


MAX_CUTS = 50  # of the end of a text until the rest is Python


@dataclass(eq=False)
class Statement:
    """A statement of a module, or several that share a line.

    Attributes:
        text: the source.
        nodes: the syntax trees.
        binds: the names of the module that it binds; "*" stands for `from module import *`.
        uses: the names of the module, and of Python, that it uses, also inside functions.
        sets: whether a function in it assigns to names of the module.
    """

    text: str
    nodes: list[ast.stmt]
    binds: set[str] = field(init=False, default_factory=set)
    uses: set[str] = field(init=False, default_factory=set)
    sets: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        try:
            self._add_names(symtable.symtable(self.text, "program.py", "exec"), top=True)
        except (SyntaxError, ValueError, RecursionError):  # such as `return` outside a function
            self.uses = {name for each in self.nodes for name in _names(each)}
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
                self.binds.add("*")

    def _add_names(self, table: symtable.SymbolTable, top: bool) -> None:
        for symbol in table.get_symbols():
            if not top and not symbol.is_global():
                continue
            if symbol.is_assigned() or symbol.is_imported() or (top and symbol.is_namespace()):
                self.binds.add(symbol.get_name())
                self.sets |= not top
            if symbol.is_referenced() or not top:
                self.uses.add(symbol.get_name())
        for child in table.get_children():
            self._add_names(child, top=False)

    def _has_only(self, *kinds: type[ast.stmt]) -> bool:
        return all(isinstance(node, kinds) for node in self.nodes)

    @property
    def is_import(self) -> bool:
        """Whether it imports and does nothing else."""
        return self._has_only(ast.Import, ast.ImportFrom)

    @property
    def is_definition(self) -> bool:
        """Whether it defines or imports and does nothing else."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
        return self._has_only(*kinds)

    @property
    def is_assignment(self) -> bool:
        """Whether it assigns and does nothing else."""
        return self._has_only(ast.Assign, ast.AnnAssign, ast.AugAssign)

    @property
    def is_for_main(self) -> bool:
        """Whether it is for a run as a script: an assertion, or an `if` with `__name__`."""
        return self._has_only(ast.Assert, *([ast.If] if "__name__" in self.uses else []))

    @property
    def is_stub(self) -> bool:
        """Whether it is a function without a body, or with one that says that it has none."""
        node = self.nodes[-1]
        return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
            isinstance(each, ast.Pass)
            or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            or (isinstance(each, ast.Raise) and "NotImplementedError" in _names(each))
            for each in node.body
        )


@dataclass(eq=False)
class Source:
    """The leading part of a text that is Python.

    Attributes:
        text: that part.
        statements: its statements, in order.
    """

    text: str = ""
    statements: list[Statement] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Return the leading part of `text` that is Python; it may be empty.

        If that part ends inside of a definition, and an earlier one of the same name is whole, the
        statements do not include the unfinished one.
        """
        lines = text.strip("\n").split("\n")
        count = len(lines)
        for _ in range(MAX_CUTS + 1):
            if count <= 0:
                break
            head = "\n".join(lines[:count])
            try:
                tree = _parse(head)
            except SyntaxError as error:
                count = min(count - 1, _line_of_error(error, lines[:count]) - 1)
            except (ValueError, RecursionError, MemoryError):
                break
            else:
                statements = list(_statements(tree, lines))
                before = cls(head, statements[:-1])
                is_cut = _ends_inside_definition(statements, lines[count:])
                is_repeated = is_cut and statements[-1].binds <= before.defined()
                return before if is_repeated else cls(head, statements)
        return cls()

    def defined(self) -> set[str]:
        """Return the names that its statements bind; a stub defines nothing."""
        return {name for each in self.statements if not each.is_stub for name in each.binds}


def _line_of_error(error: SyntaxError, lines: Sequence[str]) -> int:
    """Return the line that can't be read, from 1: of brackets left open, that of the outermost."""
    if not error.msg.endswith("was never closed"):
        return error.lineno or len(lines)
    opened: list[int] = []
    try:
        for token in tokenize.generate_tokens(iter([f"{line}\n" for line in lines]).__next__):
            if token.type == tokenize.OP and token.string in "([{":
                opened.append(token.start[0])
            elif token.type == tokenize.OP and token.string in ")]}" and opened:
                opened.pop()
    except (tokenize.TokenError, SyntaxError):  # at the end of the text
        pass
    return opened[0] if opened else error.lineno or len(lines)


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _statements(tree: ast.Module, lines: Sequence[str]) -> Iterator[Statement]:
    nodes: list[ast.stmt] = []
    first = last = 0
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(each.lineno for each in decorators)])
        if nodes and start > last:
            yield Statement("\n".join(lines[first - 1 : last]), nodes)
            nodes = []
        first = first if nodes else start
        nodes, last = [*nodes, node], node.end_lineno or start
    if nodes:
        yield Statement("\n".join(lines[first - 1 : last]), nodes)


def _ends_inside_definition(statements: Sequence[Statement], rest: Sequence[str]) -> bool:
    """Return whether the last statement is a definition and the lines after it are indented."""
    following = next((line for line in rest if line.strip()), "")
    return bool(statements) and statements[-1].is_definition and following[:1].isspace()


def parses(text: str) -> bool:
    """Return whether all of a text is Python."""
    try:
        _parse(text.strip("\n"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@lru_cache(64)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)
