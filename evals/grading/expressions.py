r"""A parser of formulas in LaTeX or plain text that reads all of a text or nothing.

`parse` returns a tree of `Node`, which `evals.grading.evaluation` evaluates. There is no
error recovery: a text with one character that the grammar does not know is no formula. Rules where
notation is ambiguous:

    ab, 2a, a(b+c)     products; every letter is a symbol of its own
    abc, n is odd      words, if there is no sign at all; 2abc is a product
    f(x+1), f'(x)      a function, whatever it is; any other letter before ( is a factor
    f(0), y(-1)        symbols: a letter before a number in parentheses
    1/2x               (1/2)x: a slash between two numbers is a fraction
    a/bc, a/2b         a/(bc), a/(2b): otherwise a slash divides by the whole product
    \sin 2x y          sin(2xy); \sin(2x)y and \sin x(y) are products
    \sin^{-1} x        the inverse function; \sin^2 x is a square
    3\frac{1}{2}       a mixed number, 3 + 1/2
    e, i, \pi          the constants
    \mathbf{i}, \vec x symbols that differ from i and x
    \frac{dy}{dx}, y'  symbols
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

MAX_DEPTH = 60  # nested brackets, fractions and exponents

_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi
omicron rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi
Pi Sigma Upsilon Phi Psi Omega hbar ell nabla imath jmath odot oplus star dagger aleph Re Im
"""
GREEK = frozenset(re.findall(r"\w+", _GREEK))
FUNCTIONS = {
    **{
        name: name
        for name in [
            "sin",
            "cos",
            "tan",
            "sec",
            "csc",
            "cot",
            "sinh",
            "cosh",
            "tanh",
            "coth",
            "log",
            "ln",
            "exp",
        ]
    },
    **{f"arc{name}": f"arc{name}" for name in ["sin", "cos", "tan", "sec", "csc", "cot"]},
    **{f"a{name}": f"arc{name}" for name in ("sin", "cos", "tan")},
    **{
        f"{arc}{name}": f"a{name}"
        for arc in ("a", "ar", "arc")
        for name in ("sinh", "cosh", "tanh")
    },
    "lg": "lg",
    "tg": "tan",
    "arctg": "arctan",
    "ctg": "cot",
    "cosec": "csc",
    "sgn": "sgn",
    "sign": "sgn",
}
INVERSES = {name: f"arc{name}" for name in ("sin", "cos", "tan", "sec", "csc", "cot")}
INVERSES.update({name: f"a{name}" for name in ("sinh", "cosh", "tanh")})
_CONSTANTS = {"pi": "pi", "infty": "inf", "infinity": "inf", "inf": "inf"}
_TWO_ARGUMENTS = {"frac": "div", **dict.fromkeys(("binom", "dbinom", "tbinom"), "binomial")}
_PYTHON = {name: name for name in ("factorial", "binomial", "floor", "ceil", "abs")}
_PYTHON |= {"ceiling": "ceil", "Abs": "abs"}
LISTS = {"max", "min", "gcd", "lcm"}
FUNCTION_NAMES = frozenset([*FUNCTIONS, *LISTS, *_PYTHON, "sqrt", "cis", "det", "arcsec", "arccsc"])
"""Names that make another number of the number behind them."""
UNIT_LETTERS = frozenset("msghNJWVAKLFCT")  # upright, they are units and no symbols
_VECTORS = {"mathbf", "vec", "boldsymbol", "bm", "hat", "widehat"}
_DECORATIONS = {"bar", "dot", "ddot", "tilde", "overline", "widetilde", "underline", "mathcal"}
_DECORATIONS |= {"mathbb", "mathscr", "mathfrak", "overrightarrow"}
_UPRIGHT = {"mathrm", "mathit", "rm", "operatorname", "operatorname*", "textit", "text", "mbox"}

_SPACE = re.compile(r"\s*")
_COMMAND = re.compile(r"\\([a-zA-Z]+\*?)")
_WORD = re.compile(
    r"(?:(?:arc|ar|a)?(?:sinh?|cosh?|tanh?)|sec|csc|cot|log|ln|exp|sqrt|max|min|gcd|lcm|sgn"
    r"|factorial|binomial|floor|ceiling|ceil|[aA]bs"
    r"|alpha|beta|gamma|delta|theta|lambda|omega|sigma|phi|rho|mu|pi|infinity|inf)(?![a-zA-Z])"
)
_REPEATING = re.compile(
    r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\\(?:bar|dot|overline)\s*(\d)"
    r"|\((\d+)\)(?=\s*$)|(\d)\u0305)"
)
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{3,}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_SMALL_FRACTION = re.compile(r"\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*(\\mathrm\s*\{\s*d\s*\}|d|\\partial)(?:\s*\^\s*\{?\s*(\d)\s*\}?)?\s*"
    r"(\\?[a-zA-Z]+(?:_\{?\w\}?)?)\s*\}\s*\{\s*\1\s*(\\?[a-zA-Z]+)(?:\s*\^\s*\{?\s*(\d)\s*\}?)?\s*\}"
)
_SUBSCRIPT_NOISE = re.compile(r"\\(?:text|mathrm|rm|mathit|textrm|mbox)(?![a-zA-Z])|[{}\s\\]")


class NoFormula(Exception):
    """The text is not a formula of the grammar."""


@dataclass(frozen=True)
class Node:
    """A formula. `kind` is the operation, `args` its operands, `value` a number or a name."""

    kind: str
    args: tuple["Node", ...] = ()
    value: object = None


def number(value: int | Fraction) -> Node:
    """Return the node of a rational number."""
    return Node("number", value=Fraction(value))


@lru_cache(4096)
def parse(text: str) -> Node | None:
    """Return the tree of a formula, or None if not all of `text` is one."""
    if _is_prose(text):
        return None
    try:
        return _Parser(text).whole()
    except (NoFormula, RecursionError):
        return None


def _is_prose(text: str) -> bool:
    """Return whether letters are words: three in a row and nothing but letters, or four apart."""
    words = [word for word in _LONG_WORD.findall(text) if not _WORD.fullmatch(word)]
    if not words:
        return False
    only_letters = re.fullmatch(r"[A-Za-z\s.,'-]+", text)
    return bool(only_letters) or bool(re.search(r"(?:^|\s)[A-Za-z]?[a-z]{3,}(?:\s|$)", text))


@lru_cache(4096)
def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols of a formula."""
    if node.kind == "symbol":
        return frozenset([str(node.value)])
    return frozenset().union(*map(symbols, node.args))


@lru_cache(4096)
def contains(node: Node, kind: str) -> bool:
    """Return whether there is an operation of this kind in the formula."""
    return node.kind == kind or any(contains(arg, kind) for arg in node.args)


def choose_signs(node: Node, plus: bool) -> Node:
    r"""Return the formula with every \pm read as + (and \mp as -), or the other way round."""
    args = tuple(choose_signs(arg, plus) for arg in node.args)
    if node.kind in ("pm", "mp"):
        positive = (node.kind == "pm") == plus
        right = args[-1] if positive else Node("neg", (args[-1],))
        return Node("add", (args[0], right)) if len(args) == 2 else right
    return Node(node.kind, args, node.value)


def without_degrees(node: Node) -> Node:
    """Return the formula without its signs for degrees."""
    if node.kind == "degrees":
        return without_degrees(node.args[0])
    return Node(node.kind, tuple(map(without_degrees, node.args)), node.value)


class _Parser:
    """Recursive descent over the characters of one text."""

    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth, self.bars = text, 0, 0, 0

    def whole(self) -> Node:
        node = self.sum()
        self.space()
        if self.at < len(self.text):
            raise NoFormula
        return node

    # Characters

    def space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def peek(self) -> str:
        self.space()
        return self.text[self.at : self.at + 1]

    def take(self, *tokens: str) -> str:
        """Skip the first of `tokens` that comes next and return it; "" if none does."""
        self.space()
        for token in tokens:
            if self.text.startswith(token, self.at):
                end = self.at + len(token)
                if token[0] == "\\" and token[-1].isalpha() and self.text[end : end + 1].isalpha():
                    continue
                self.at = end
                return token
        return ""

    def need(self, token: str) -> None:
        if not self.take(token):
            raise NoFormula

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.space()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    # Operators

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoFormula
        node = self.signed(self.product)
        while sign := self.take("+", "-", "\\pm", "\\mp"):
            right = self.product()
            if sign == "-":
                right = Node("neg", (right,))
            kind = {"\\pm": "pm", "\\mp": "mp"}.get(sign, "add")
            node = Node(kind, (node, right))
        self.depth -= 1
        return node

    def signed(self, operand) -> Node:  # type: ignore[no-untyped-def]
        sign = self.take("+", "-", "\\pm", "\\mp")
        if not sign:
            return operand()
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoFormula
        inner = self.signed(operand)
        self.depth -= 1
        if sign == "+":
            return inner
        return Node({"-": "neg", "\\pm": "pm", "\\mp": "mp"}[sign], (inner,))

    def product(self) -> Node:
        start = self.at
        node = self.implicit()
        while sign := self.take("\\cdot", "\\times", "\\ast", "*", "\\div", "/"):
            if sign not in ("/", "\\div"):
                node = Node("mul", (node, self.signed(self.implicit)))
                continue
            above = self.text[start : self.at - len(sign)].strip()
            plain = re.fullmatch(r"[\d.]+|.*(?:\\cdot|\\times|\*)\s*[\d.]+", above)
            if plain and self.peek().isdigit():  # 1/2x: the fraction is a factor
                below = self.power()
                node = Node("div", (node, below))
                if self.starts_factor():
                    node = Node("mul", (node, self.implicit()))
            else:
                node = Node("div", (node, self.signed(self.implicit)))
        return node

    def implicit(self) -> Node:
        node = last = self.power()
        while self.starts_factor():
            after_power = self.text[: self.at].rstrip()[-1:] in (")", "]") or last.kind == "pow"
            if self.peek().isdigit() and not after_power:
                raise NoFormula  # "2 3", "x2" and "\frac{1}{2}3" are not products
            last = self.power()
            node = Node("mul", (node, last))
        return node

    def starts_factor(self) -> bool:
        next_ = self.peek()
        if not next_ or next_ in "+-*/^_)]},;:=<>&!'%":
            return False
        if next_ == "|":
            return self.bars == 0
        if next_ != "\\":
            return True
        ends = r"\\(?:pm|mp|cdot|times|ast|div|rfloor|rceil|rvert|rVert|right|%|\}|\||choose)"
        return not re.match(rf"{ends}(?![a-zA-Z])", self.text[self.at :])

    def power(self) -> Node:
        node = self.postfix(self.atom())
        if self.take("**"):
            return Node("pow", (node, self.signed(self.power)))
        return self.raised(node) if self.take("^") else node

    def raised(self, node: Node) -> Node:
        if self.take("{\\circ}", "\\circ", "{\\degree}"):
            return self.postfix(Node("degrees", (node,)))
        if self.take("{\\prime}", "\\prime"):
            return self.primed(node)
        exponent = self.script()
        if node.kind == "symbol" and self.peek() == "_":  # v^2_0 is v_0^2
            node = self.subscripted(node)
        return self.postfix(Node("pow", (node, exponent)))

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                node = Node("factorial", (node,))
            elif self.take("\\%", "%"):
                node = Node("div", (node, number(100)))
            elif self.take("\\degree", "\u00b0"):
                node = Node("degrees", (node,))
            else:
                return node

    def script(self) -> Node:
        """Parse an exponent or the argument of a root: a group, a number, or one atom."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.take("-"):
            return Node("neg", (self.script(),))
        if self.take("+"):
            return self.script()
        return self.atom()

    def argument(self) -> Node:
        r"""Parse the argument of \frac: a group, one digit, or one atom."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.peek().isdigit():
            self.at += 1
            return number(int(self.text[self.at - 1]))
        return self.atom()

    def group(self, opening: str, closing: str) -> Node:
        self.need(opening)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.need(closing)
        return node

    # Operands

    def atom(self) -> Node:
        next_ = self.peek()
        if next_.isdigit() or next_ == ".":
            return self.number()
        if next_ in ("(", "["):
            return self.group(next_, ")" if next_ == "(" else "]")
        if next_ == "{":
            return self.braces()
        if next_ == "|":
            self.at += 1
            return self.bars_until("|")
        if next_ == "\\":
            return self.command()
        if not next_.isalpha():
            raise NoFormula
        word = self.match(_WORD)
        if word:
            return self.named(word.group(), plain=True)
        self.at += 1
        if next_ in "ei" and self.peek() != "_" and not self.text.startswith("'", self.at):
            return Node("constant", value=next_)
        return self.symbol(next_)

    def number(self) -> Node:
        repeating = self.match(_REPEATING)
        if repeating:
            whole, fixed, *period = repeating.groups()
            digits = next(group for group in period if group)
            scale = 10 ** len(fixed)
            tail = Fraction(int(digits), (10 ** len(digits) - 1) * scale)
            return number(Fraction(int(whole + fixed or "0"), scale) + tail)
        found = self.match(_NUMBER)
        if not found:
            raise NoFormula
        node = number(Fraction(found.group()))
        if "." in found.group():
            return Node("number", value=node.value, args=(Node("decimal"),))
        mixed = self.match(_SMALL_FRACTION)
        if mixed:
            above, below = int(mixed[1] or mixed[2]), int(mixed[3] or mixed[4])
            if not below:
                raise NoFormula
            return number(int(found.group()) + Fraction(above, below))
        return node

    def braces(self) -> Node:
        self.need("{")
        bars, self.bars = self.bars, 0
        node = self.sum()
        if self.take("\\choose"):
            node = Node("binomial", (node, self.sum()))
        self.bars = bars
        self.need("}")
        return node

    def bars_until(self, closing: str) -> Node:
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        self.need(closing)
        return Node("abs", (node,))

    def command(self) -> Node:
        derivative = self.match(_DERIVATIVE)
        if derivative:
            return Node("symbol", value="derivative " + re.sub(r"[\s{}\\]", "", derivative[0]))
        for opening, closing, kind in (
            ("\\lfloor", "\\rfloor", "floor"),
            ("\\lceil", "\\rceil", "ceil"),
            ("\\lvert", "\\rvert", "abs"),
            ("\\|", "\\|", "abs"),
        ):
            if self.take(opening):
                node = self.sum()
                self.need(closing)
                return Node(kind, (node,))
        found = self.match(_COMMAND)
        if not found:
            raise NoFormula
        return self.named(found.group(1), plain=False)

    def named(self, name: str, plain: bool) -> Node:
        """Parse what a command, or the same word without its backslash, stands for."""
        if name in _CONSTANTS:
            return Node("constant", value=_CONSTANTS[name])
        if name in _TWO_ARGUMENTS:
            above = self.argument()
            return Node(_TWO_ARGUMENTS[name], (above, self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(FUNCTIONS[name])
        if name in LISTS or name in _PYTHON:
            return self.call(_PYTHON.get(name, name))
        if name in _VECTORS | _DECORATIONS:
            return self.decorated("vec" if name in _VECTORS else name)
        if name in _UPRIGHT:
            return self.upright()
        if name not in GREEK and not plain:
            raise NoFormula
        return self.symbol(name)

    def root(self) -> Node:
        if self.peek() == "[":
            order = self.group("[", "]")
            return Node("root", (self.script(), order))
        return Node("root", (self.script(), number(2)))

    def function(self, name: str) -> Node:
        base, exponent = None, None
        for _ in range(2):
            if self.take("_") and base is None:
                base = self.base()
            elif self.take("^") and exponent is None:
                exponent = self.script()
        if base is not None and name != "log":
            raise NoFormula
        if exponent == Node("neg", (number(1),)) and name in INVERSES:
            name, exponent = INVERSES[name], None
        args = (self.function_argument(),) + ((base,) if base is not None else ())
        node = Node("call", args, name)
        if exponent is not None:
            return Node("pow", (node, exponent))
        return self.postfix(node)

    def base(self) -> Node:
        r"""Parse the base of a logarithm; in \log_25 it is one digit, since an argument follows."""
        digits = re.compile(r"\d(?=\d+\s*(?:$|[-+*/,;)\]}=]))").match(self.text, self.at)
        if digits:
            self.at = digits.end()
            return number(int(digits.group()))
        return self.argument() if self.peek() == "{" else self.script()

    def function_argument(self) -> Node:
        next_ = self.peek()
        if next_ in ("(", "[", "{", "|"):
            node = self.atom()
            return self.raised(node) if next_ == "{" and self.take("^") else node
        node = self.signed(self.power)
        while self.starts_factor() and self.peek() not in "([{|":
            if re.match(r"\\(?!frac|sqrt|pi)[a-zA-Z]+", self.text[self.at :]):
                command = _COMMAND.match(self.text, self.at)
                if command and command.group(1) not in GREEK:
                    break
            word = _WORD.match(self.text, self.at)
            if word and word.group() in FUNCTIONS:
                break
            node = Node("mul", (node, self.power()))
        return node

    def call(self, name: str) -> Node:
        closing = {"(": ")", "{": "}", "[": "]", "\\": "\\}"}.get(self.peek())
        if closing is None:
            raise NoFormula
        self.at += 2 if closing == "\\}" else 1
        args = [self.sum()]
        while self.take(","):
            args.append(self.sum())
        self.need(closing)
        if name in _PYTHON and len(args) != (2 if name == "binomial" else 1):
            raise NoFormula
        return self.postfix(Node(name, tuple(args)))

    def content(self) -> str:
        """Return the raw text of a group or of one token."""
        if self.peek() != "{":
            found = self.match(_COMMAND) or self.match(re.compile(r"\w"))
            if not found:
                raise NoFormula
            return found.group()
        depth, start = 0, self.at + 1
        for at in range(self.at, len(self.text)):
            depth += {"{": 1, "}": -1}.get(self.text[at], 0)
            if depth == 0:
                self.at = at + 1
                return self.text[start:at].strip()
        raise NoFormula

    def decorated(self, decoration: str) -> Node:
        inner = self.content()
        if not re.fullmatch(r"[A-Za-z0-9\\_{} ]+", inner):
            raise NoFormula
        inner = re.sub(r"^\\[ij]math$", lambda found: found.group()[1], inner)
        return self.symbol(f"{decoration} {inner.strip()}")

    def upright(self) -> Node:
        inner = self.content()
        if inner in FUNCTIONS:
            return self.function(FUNCTIONS[inner])
        if inner in LISTS:
            return self.call(inner)
        if not re.fullmatch(r"[A-Za-z]", inner) or inner in UNIT_LETTERS:
            raise NoFormula
        return Node("constant", value=inner) if inner in "ei" else self.symbol(inner)

    def symbol(self, name: str) -> Node:
        node = self.primed(Node("symbol", value=name))
        applied = re.compile(r"\(-?\d+\)").match(self.text, self.at)
        if applied:  # f(0) is a value of a function, not a product
            self.at = applied.end()
            return Node("symbol", value=f"{node.value}{applied.group()}")
        node = self.primed(self.subscripted(node))
        if str(node.value).rstrip("'") == "f" and self.text.startswith("(", self.at):
            return Node("call", (self.group("(", ")"),), node.value)
        return node

    def subscripted(self, node: Node) -> Node:
        if not self.take("_"):
            return node
        plain = _SUBSCRIPT_NOISE.sub("", self.content())
        if not plain:
            raise NoFormula
        return Node("symbol", value=f"{node.value}_{plain}")

    def primed(self, node: Node) -> Node:
        while self.take("'", "^{\\prime}", "^\\prime", "^{'}"):
            if node.kind != "symbol":
                raise NoFormula
            node = Node("symbol", value=f"{node.value}'")
        return node
