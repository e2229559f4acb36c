"""Extraction of the program from a model's answer, and its run with the tests.

The program has the statements that the tests need: the functions that they call, from the last
block that defines them, with the imports, helpers and values that these use, from any block. Other
statements, such as examples and what stands under `if __name__ == "__main__"`, are left out.
"""

import ast
import builtins
import re
import symtable
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from evals.benchmark import Item
from evals.grading.thoughts import after_thinking
from evals.sandbox import runner

CPU_SECONDS = 5.0
MODULE = "program"  # the name of the module, so that it is not run as `__main__`
MAX_FENCES, MAX_STARTS = 40, 200
_FENCE = re.compile(r"^[ \t]*(?:>[ \t]?)*(`{3,}|~{3,})[ \t]*([^`\n]*)$")
_FENCE_AFTER_TEXT = re.compile(r"^(.*[^\s`>].*?)[ \t]*(```[\w+-]*[ \t]*)$")
_STATEMENT = re.compile(r"^(?:from [\w.]+ import|import \w|(?:async )?def \w|class \w|@\w)", re.M)
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*(?:\s*:[^=]+)?\s*=[^=]")
_DEFINITION = re.compile(r"^def\s+(\w+)", re.MULTILINE)
# With these the names that a program uses cannot be read from its text.
_DYNAMIC = {"globals", "locals", "vars", "eval", "exec", "__import__"}
_NOT_FOR_SOLUTIONS = {"print", "input", "exit", "quit", "breakpoint"}
_SETTINGS = {"setrecursionlimit", "seed", "set_int_max_str_digits", "getcontext", "filterwarnings"}


def code_passes(item: Item, text: str) -> bool:
    """Return whether the code in `text` passes `item.tests` in the sandbox.

    `item.meta` may have "code_prompt", the head of the function to complete, "cpu_seconds", the CPU
    time that the program and its tests may each take, and "memory_mb", the memory in MiB.
    """
    meta = item.meta
    program = extract_code(text, meta.get("code_prompt", ""), names_in_tests(item.tests))
    return runner.run(
        program,
        tests=item.tests,
        cpu_seconds=meta.get("cpu_seconds", CPU_SECONDS),
        memory_mb=meta.get("memory_mb", runner.MEMORY_MB),
        name=MODULE,
    ).passed


def extract_code(text: str, prompt: str = "", names: Sequence[str] = ()) -> str:
    """Return the program in a model's answer.

    Args:
        text: the whole answer. Blocks may be fenced or not, closed or not; what does not parse at
            their end is cut off. What a model writes while it thinks does not count.
        prompt: the code to complete, if any. An answer that does not define its last function is
            the body of that function. Else what stands above the function is part of the program.
        names: names that the tests use; by default the last function of the prompt. Without any,
            the program is the last block that has a function, or the last block, or the text.
    """
    text = "\n".join(map(_fence_on_its_own, after_thinking(text).replace("\r\n", "\n").split("\n")))
    headers = list(_DEFINITION.finditer(prompt))
    wanted = tuple(names) or tuple(header.group(1) for header in headers[-1:])
    blocks = _blocks(text)
    if not wanted:
        return _whole(text, blocks)
    above = _Source.parse(prompt[: headers[-1].start()]) if headers else _Source()
    # Tests may call what stands above the function, too, which an answer need not repeat.
    own = tuple(set(wanted) - above.defined()) or wanted
    sources = [_defining(block, own) for block in blocks]
    before_fence = re.split(r"(?m)^[ \t]*```", text, maxsplit=1)[0]
    if not any(source.complete for source in sources):
        starts_body = bool(headers) and _starts_body(before_fence, own)
        if not starts_body:
            sources += [_defining(whole, own) for whole in dict.fromkeys((before_fence, text))]
        if headers and not any(source.complete for source in sources):
            bodies = [before_fence, *blocks] if starts_body else [*blocks, before_fence]
            completed = _completed(prompt, bodies, headers[-1].group(1))
            sources += [completed] if completed else [_defining(text, own)]
    chosen = _choose(sources, own)
    if chosen is None:
        return prompt + _whole(text, blocks) if headers else _whole(text, blocks)
    others = [source for source in sources if source is not chosen]
    return _program([above, *others, chosen], wanted)


@lru_cache(4096)
def names_in_tests(tests: str) -> tuple[str, ...]:
    """Return the names that tests use and neither define nor import; () if they do not parse."""
    source = _Source.parse(tests.replace("\r\n", "\n"))
    if not source.text or source.text.split() != tests.split():
        return ()
    bound = {name for unit in source.units for name in unit.binds}
    used = {name for unit in source.units for name in unit.uses}
    return tuple(sorted(used - bound - set(vars(builtins)) - {"__name__", "__file__"}))


@dataclass
class _Unit:
    """Statements of a module that share lines.

    Attributes:
        text: their source.
        nodes: their syntax trees.
        binds: the module's names that they bind.
        uses: the module's names that they use, also inside functions.
        sets: whether a function of them assigns to names of the module.
    """

    text: str
    nodes: list[ast.stmt]
    binds: set[str] = field(default_factory=set)
    uses: set[str] = field(default_factory=set)
    sets: bool = False

    def __post_init__(self) -> None:
        try:
            self._add_names(symtable.symtable(self.text, "program.py", "exec"), top=True)
        except (SyntaxError, ValueError):  # such as `return` outside a function
            nodes = (node for each in self.nodes for node in ast.walk(each))
            self.uses = {node.id for node in nodes if isinstance(node, ast.Name)}
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

    @property
    def is_main(self) -> bool:
        """Whether they are for a run as a script: under `__name__`, or assertions."""
        return all(
            isinstance(node, ast.Assert) or (isinstance(node, ast.If) and "__name__" in self.uses)
            for node in self.nodes
        )

    @property
    def defines(self) -> bool:
        """Whether they only define or import."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
        return all(isinstance(node, kinds) for node in self.nodes)

    @property
    def imports(self) -> bool:
        return all(isinstance(node, ast.Import | ast.ImportFrom) for node in self.nodes)

    @property
    def is_stub(self) -> bool:
        """Whether they are a function without a body, or one that says so."""
        node = self.nodes[-1]
        return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
            isinstance(each, ast.Pass)
            or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
            or (isinstance(each, ast.Raise) and "NotImplementedError" in ast.unparse(each))
            for each in node.body
        )

    def changes(self, names: set[str], setters: set[str]) -> bool:
        """Return whether they change an object with one of the names, or a setting of Python.

        Args:
            names: of objects.
            setters: of functions that assign to names of the module.
        """
        if self.uses & _NOT_FOR_SOLUTIONS or self.is_main:
            return False
        for node in (n for each in self.nodes for n in ast.walk(each)):
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


@dataclass
class _Source:
    """The leading part of a text that parses, in units.

    Attributes:
        text: that part.
        units: its statements.
        complete: whether it defines all names that were wanted.
    """

    text: str = ""
    units: list[_Unit] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def parse(cls, text: str) -> "_Source":
        lines = text.strip("\n").split("\n")
        count = len(lines)
        while count > 0:
            head = "\n".join(lines[:count])
            try:
                tree = _parse(head)
            except SyntaxError as error:
                count = min(count - 1, (error.lineno or count) - 1)
            except (ValueError, RecursionError, MemoryError):
                return cls()
            else:
                units = list(_units(tree, lines))
                rest = [line for line in lines[count:] if line.strip()]
                if units and units[-1].defines and rest and rest[0][0].isspace():
                    before = cls(head, units[:-1])  # the last function is cut off
                    if units[-1].binds <= before.defined():
                        return before
                return cls(head, units)
        return cls()

    def defined(self) -> set[str]:
        return {name for unit in self.units if not unit.is_stub for name in unit.binds}


def _units(tree: ast.Module, lines: list[str]) -> Iterator[_Unit]:
    nodes: list[ast.stmt] = []
    first = last = 0
    for node in tree.body:
        decorators = getattr(node, "decorator_list", [])
        start = min([node.lineno, *(each.lineno for each in decorators)])
        if nodes and start > last:
            yield _Unit("\n".join(lines[first - 1 : last]), nodes)
            nodes = []
        first = first if nodes else start
        nodes, last = [*nodes, node], node.end_lineno or start
    if nodes:
        yield _Unit("\n".join(lines[first - 1 : last]), nodes)


def _blocks(text: str) -> list[str]:
    """Return the contents of the fenced blocks; a block that parses may contain fences."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE.match(line)]
    blocks: list[str] = []
    position = 0
    while position < len(fences):
        start = fences[position] + 1
        ends = [*fences[position + 1 :], len(lines)]
        found = 0
        for number, end in enumerate(ends[:MAX_FENCES]):
            content = textwrap.dedent("\n".join(lines[start:end]))
            if content.strip() and _parses(content) and "def " in content:
                found = number
                break
        content = textwrap.dedent("\n".join(lines[start : ends[found]]))
        # A last fence with nothing but prose after it has closed a block, not opened one.
        if found < len(fences) - position - 1 or not position or _STATEMENT.search(content):
            blocks.append(content + "\n" if content.strip() else content)
        position += found + 2
    return [block for block in blocks if block.strip()]


def _defining(text: str, wanted: Sequence[str]) -> _Source:
    """Return the part of a text that defines the names: from its start, or from later statements.

    If prose stands between statements, those before it belong to the program too. What is defined
    inside of another function or class is not defined.
    """
    source = _Source.parse(text)
    if source.defined() >= set(wanted):
        return _Source(source.text, source.units, complete=True)
    pattern = "|".join(map(re.escape, wanted))
    if not re.search(rf"(?m)^[ \t>]*(?:async[ ]+def|def|class)[ ]+(?:{pattern})\b", text):
        return source
    lines = text.split("\n")
    stripped = [line.lstrip(" \t>") for line in lines]
    starts = [n for n, t in enumerate(stripped) if _STATEMENT.match(t) or _ASSIGNMENT.match(t)]
    before: list[_Unit] = []
    end = 0
    for start in starts[:MAX_STARTS]:
        if start < end:
            continue
        margin = len(lines[start]) - len(lines[start].lstrip(" \t>"))
        region = [
            line[margin:] if not line[:margin].strip(" \t>") else line for line in lines[start:]
        ]
        later = _Source.parse("\n".join(region))
        if later.defined() >= set(wanted):
            return _Source(later.text, [*before, *later.units], complete=True)
        if later.defined() & set(wanted) and not source.defined() & set(wanted):
            source = later
        before += later.units
        end = start + later.text.count("\n") + 1
    return source


def _choose(sources: Sequence[_Source], wanted: Sequence[str]) -> _Source | None:
    """Return the last source that defines all names, else the last that defines one."""
    complete = [source for source in sources if source.complete]
    found = complete or [source for source in sources if source.defined() & set(wanted)]
    return found[-1] if found else None


def _starts_body(text: str, wanted: Sequence[str]) -> bool:
    """Return whether a text starts with an indented line that is no definition of the names."""
    first = text.strip("\n").partition("\n")[0]
    defined = re.match(r"\s+(?:async\s+)?def\s+(\w+)", first)
    return first[:1].isspace() and not (defined and defined.group(1) in wanted)


def _completed(prompt: str, candidates: Sequence[str], name: str) -> _Source | None:
    """Return the prompt with the first of the candidates that is a body of its function.

    A model may leave out the indentation of the body, or of its first line. Of these readings, the
    one of which most can be parsed counts.
    """
    for candidate in candidates:
        if not candidate.strip():
            continue
        body = candidate.strip("\n")
        readings = [
            textwrap.indent(textwrap.dedent(body), "    "),
            _with_first_line_aligned(body),
        ]
        if body[0].isspace():
            readings.insert(0, body)
        found = [source for text in readings if (source := _with_body(prompt, text, name))]
        if found:
            return max(found, key=lambda source: len(source.text.split("\n")))
    return None


def _with_first_line_aligned(body: str) -> str:
    """Give the first line the indentation of the least indented line below it; indent by four.

    What follows without any indentation is no part of the body.
    """
    lines = body.split("\n")
    is_inside = [not line.strip() or line[0].isspace() for line in lines[1:]]
    end = is_inside.index(False) + 1 if False in is_inside else len(lines)
    margins = [line[: len(line) - len(line.lstrip())] for line in lines[1:end] if line.strip()]
    lines[0] = min(margins, key=len, default="") + lines[0].lstrip()
    inside = textwrap.indent(textwrap.dedent("\n".join(lines[:end])), "    ")
    return "\n".join([inside, *lines[end:]])


def _with_body(prompt: str, body: str, name: str) -> _Source | None:
    """Return the prompt with a body of its function; None if it is none."""
    source = _Source.parse(f"{prompt.rstrip()}\n{body}")
    written = [unit for unit in source.units if name in unit.binds and not unit.is_stub]
    if not written or not written[0].text.startswith(f"def {name}"):
        return None
    # A model that runs on may define the function once more.
    kept = [unit for unit in source.units if name not in unit.binds or unit is written[0]]
    return _Source(source.text, kept, complete=True)


def _program(sources: Sequence[_Source], wanted: Sequence[str]) -> str:
    """Return the statements that the wanted names need; a later source goes before an earlier."""
    units = [unit for source in sources for unit in source.units]
    needed = _Needed(sources)
    needed.keep([unit for unit in units if "*" in unit.binds])
    needed.follow(wanted)
    if needed.seen & _DYNAMIC:
        needed.keep([unit for unit in units if unit.defines or _assigns(unit)])
    before = -1
    while len(needed.kept) > before:
        before = len(needed.kept)
        for source in sources:
            needed.keep(needed.changes_in(source))
    future = [unit for unit in units if "from __future__" in unit.text]
    chosen = [unit for unit in units if needed.has(unit) and unit not in future]
    return "\n".join(unit.text for unit in [*future[:1], *chosen]) + "\n"


class _Needed:
    """The statements that names need, and those that these need.

    Attributes:
        kept: the identities of the statements.
        seen: the names that have been looked up.
    """

    def __init__(self, sources: Sequence[_Source]) -> None:
        self.sources = sources
        self.kept: set[int] = set()
        self.seen: set[str] = set()

    def has(self, unit: _Unit) -> bool:
        return id(unit) in self.kept

    def keep(self, units: Iterable[_Unit]) -> None:
        """Add statements, and what they need."""
        new = [unit for unit in units if not self.has(unit)]
        self.kept.update(map(id, new))
        self.follow({name for unit in new for name in unit.uses | unit.binds})

    def follow(self, names: Iterable[str]) -> None:
        """Add the statements that bind names, from the last source that has any."""
        for name in names:
            if name in self.seen:
                continue
            self.seen.add(name)
            for source in reversed(self.sources):
                found = [unit for unit in source.units if name in unit.binds and not unit.is_main]
                if any(not unit.is_stub for unit in found):
                    self.keep(found)
                    break

    def changes_in(self, source: _Source) -> list[_Unit]:
        """Return the statements that change objects of their own source that are needed."""
        inside = [unit for unit in source.units if self.has(unit)]
        objects = {name for unit in inside if not unit.imports for name in unit.binds}
        setters = {name for unit in inside if unit.sets for name in unit.binds}
        rest = (unit for unit in source.units if not unit.defines)
        return [unit for unit in rest if unit.changes(objects, setters)]


def _assigns(unit: _Unit) -> bool:
    return all(isinstance(n, ast.Assign | ast.AnnAssign | ast.AugAssign) for n in unit.nodes)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _fence_on_its_own(line: str) -> str:
    return _FENCE_AFTER_TEXT.sub(r"\1\n\2", line) if "```" in line else line


def _whole(text: str, blocks: Sequence[str]) -> str:
    """Return the last block with a function, else the last, else the text from its code on."""
    if blocks:
        return ([block for block in blocks if _DEFINITION.search(block)] or list(blocks))[-1]
    start = _STATEMENT.search(text)
    if start is None or _parses(text):
        return text
    return _Source.parse(text[start.start() :]).text or text[start.start() :]


@lru_cache(64)
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _parses(text: str) -> bool:
    try:
        _parse(text.strip("\n"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
