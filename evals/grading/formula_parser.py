r"""A parser of formulas in LaTeX or plain text that reads all of a text or nothing.

`parse` returns a tree of `evals.grading.formulas.Node`. There is no error recovery: a text with one
character that the grammar does not know is no formula. Rules where notation is ambiguous:

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
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from evals.grading import vocabulary
from evals.grading.formulas import Node, rational
from evals.grading.scanner import NoFormula, Scanner

MAX_DEPTH = 60  # nested brackets, fractions and exponents

_WORD = re.compile(  # a name without its backslash
    r"(?:(?:arc|ar|a)?(?:sinh?|cosh?|tanh?)|sec|csc|cot|log|ln|exp|sqrt|max|min|gcd|lcm|sgn"
    r"|factorial|binomial|floor|ceiling|ceil|[aA]bs"
    r"|alpha|beta|gamma|delta|theta|lambda|omega|sigma|phi|rho|mu|pi|infinity|inf)(?![a-zA-Z])"
)
_LONG_WORD = re.compile(r"(?<![\\a-zA-Z])[A-Za-z]{3,}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_REPEATING = re.compile(  # 0.1\overline{6}, 0.\bar6, 0.1(6)
    r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{(\d+)\}|\\(?:bar|dot|overline)\s*(\d)"
    r"|\((\d+)\)(?=\s*$)|(\d)\u0305)"
)
_SMALL_FRACTION = re.compile(r"\s*\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_DERIVATIVE = re.compile(  # \frac{dy}{dx}, \frac{\partial^2 f}{\partial x^2}
    r"\\frac\s*\{\s*(\\mathrm\s*\{\s*d\s*\}|d|\\partial)(?:\s*\^\s*\{?\s*(\d)\s*\}?)?\s*"
    r"(\\?[a-zA-Z]+(?:_\{?\w\}?)?)\s*\}\s*\{\s*\1\s*(\\?[a-zA-Z]+)(?:\s*\^\s*\{?\s*(\d)\s*\}?)?\s*\}"
)
_NUMERATOR = re.compile(r"[\d.]+|.*(?:\\cdot|\\times|\*)\s*[\d.]+")  # 1, or x*1
_NO_FACTOR = re.compile(
    r"\\(?:pm|mp|cdot|times|ast|div|rfloor|rceil|rvert|rVert|right|%|\}|\||choose)(?![a-zA-Z])"
)
_ONE_DIGIT_BASE = re.compile(r"\d(?=\d+\s*(?:$|[-+*/,;)\]}=]))")
_INTEGER_IN_PARENTHESES = re.compile(r"\(-?\d+\)")
_SUBSCRIPT_NOISE = re.compile(r"\\(?:text|mathrm|rm|mathit|textrm|mbox)(?![a-zA-Z])|[{}\s\\]")
_DELIMITERS = (
    ("\\lfloor", "\\rfloor", "floor"),
    ("\\lceil", "\\rceil", "ceil"),
    ("\\lvert", "\\rvert", "abs"),
    ("\\|", "\\|", "abs"),
)
_SIGNS = ("+", "-", "\\pm", "\\mp")


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


class _Parser(Scanner):
    """Recursive descent over one text; each method takes a part of a formula and returns its tree.

    Attributes:
        depth: sums and signs that the current position is inside of.
        bars: absolute values |x| that are open, in the innermost bracket.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.bars = 0

    def whole(self) -> Node:
        node = self.sum()
        if self.peek():
            raise NoFormula
        return node

    def go_deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NoFormula

    # Operators

    def sum(self) -> Node:
        self.go_deeper()
        node = self.signed(self.product)
        while sign := self.take(*_SIGNS):
            right = self.product()
            if sign == "-":
                right = Node("neg", (right,))
            kind = {"\\pm": "pm", "\\mp": "mp"}.get(sign, "add")
            node = Node(kind, (node, right))
        self.depth -= 1
        return node

    def signed(self, operand: Callable[[], Node]) -> Node:
        sign = self.take(*_SIGNS)
        if not sign:
            return operand()
        self.go_deeper()
        inner = self.signed(operand)
        self.depth -= 1
        if sign == "+":
            return inner
        return Node({"-": "neg", "\\pm": "pm", "\\mp": "mp"}[sign], (inner,))

    def product(self) -> Node:
        start = self.at
        node = self.implicit_product()
        while sign := self.take("\\cdot", "\\times", "\\ast", "*", "\\div", "/"):
            if sign not in ("/", "\\div"):
                node = Node("mul", (node, self.signed(self.implicit_product)))
                continue
            above = self.text[start : self.at - len(sign)].strip()
            if _NUMERATOR.fullmatch(above) and self.peek().isdigit():
                node = Node("div", (node, self.power()))
                if self.starts_factor():  # 1/2x: the fraction is a factor
                    node = Node("mul", (node, self.implicit_product()))
            else:
                node = Node("div", (node, self.signed(self.implicit_product)))
        return node

    def implicit_product(self) -> Node:
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
        return next_ != "\\" or not _NO_FACTOR.match(self.text, self.at)

    def power(self) -> Node:
        node = self.postfix(self.operand())
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
                node = Node("div", (node, rational(100)))
            elif self.take("\\degree", "\u00b0"):
                node = Node("degrees", (node,))
            else:
                return node

    # Brackets and arguments

    def group(self, opening: str, closing: str, inside: Callable[[], Node] | None = None) -> Node:
        """Parse what stands in brackets, by default a sum."""
        self.need(opening)
        bars, self.bars = self.bars, 0
        node = (inside or self.sum)()
        self.bars = bars
        self.need(closing)
        return node

    def choice(self) -> Node:
        r"""Parse the inside of {n \choose k}, or a sum."""
        node = self.sum()
        return Node("binomial", (node, self.sum())) if self.take("\\choose") else node

    def delimited(self, closing: str, kind: str) -> Node:
        r"""Parse what follows |, \lfloor and the like, as the operation that they stand for."""
        node = self.sum()
        self.need(closing)
        return Node(kind, (node,))

    def script(self) -> Node:
        """Parse an exponent or the argument of a root: a group, or an operand with its sign."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.take("-"):
            return Node("neg", (self.script(),))
        if self.take("+"):
            return self.script()
        return self.operand()

    def argument(self) -> Node:
        r"""Parse the argument of \frac: a group, one digit, or one operand."""
        if self.peek() == "{":
            return self.group("{", "}")
        if self.peek().isdigit():
            self.at += 1
            return rational(int(self.text[self.at - 1]))
        return self.operand()

    # Operands

    def operand(self) -> Node:
        next_ = self.peek()
        if next_.isdigit() or next_ == ".":
            return self.number()
        if next_ in ("(", "["):
            return self.group(next_, ")" if next_ == "(" else "]")
        if next_ == "{":
            return self.group("{", "}", self.choice)
        if next_ == "|":
            self.at += 1
            self.bars += 1
            node = self.delimited("|", "abs")
            self.bars -= 1
            return node
        if next_ == "\\":
            return self.after_backslash()
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
            return rational(Fraction(int(whole + fixed or "0"), scale) + tail)
        found = self.match(_NUMBER)
        if not found:
            raise NoFormula
        value = Fraction(found.group())
        if "." in found.group():
            return Node("number", value=value, args=(Node("decimal"),))
        mixed = self.match(_SMALL_FRACTION)
        if mixed:
            above, below = int(mixed[1] or mixed[2]), int(mixed[3] or mixed[4])
            if not below:
                raise NoFormula
            value += Fraction(above, below)
        return rational(value)

    def after_backslash(self) -> Node:
        derivative = self.match(_DERIVATIVE)
        if derivative:
            return Node("symbol", value="derivative " + re.sub(r"[\s{}\\]", "", derivative[0]))
        for opening, closing, kind in _DELIMITERS:
            if self.take(opening):
                return self.delimited(closing, kind)
        return self.named(self.command(), plain=False)

    def named(self, name: str, plain: bool) -> Node:
        """Parse what a command, or the same word without its backslash, stands for."""
        if name in vocabulary.CONSTANTS:
            return Node("constant", value=vocabulary.CONSTANTS[name])
        if name in vocabulary.OF_TWO_ARGUMENTS:
            first = self.argument()
            return Node(vocabulary.OF_TWO_ARGUMENTS[name], (first, self.argument()))
        if name == "sqrt":
            order = self.group("[", "]") if self.peek() == "[" else rational(2)
            return Node("root", (self.script(), order))
        if name in vocabulary.FUNCTIONS:
            return self.function(vocabulary.FUNCTIONS[name])
        if name in vocabulary.CALLS:
            return self.call(vocabulary.CALLS[name])
        if name in vocabulary.VECTORS:
            return self.decorated("vec")
        if name in vocabulary.ACCENTS | vocabulary.FONTS:
            return self.decorated(name)
        if name in vocabulary.UPRIGHT:
            return self.upright()
        if name not in vocabulary.SYMBOLS and not plain:
            raise NoFormula
        return self.symbol(name)

    # Functions

    def function(self, name: str) -> Node:
        base, exponent = None, None
        for _ in range(2):
            if self.take("_") and base is None:
                base = self.base()
            elif self.take("^") and exponent is None:
                exponent = self.script()
        if base is not None and name != "log":
            raise NoFormula
        if exponent == Node("neg", (rational(1),)) and name in vocabulary.INVERSES:
            name, exponent = vocabulary.INVERSES[name], None
        args = (self.function_argument(),) + ((base,) if base is not None else ())
        node = Node("call", args, name)
        if exponent is not None:
            return Node("pow", (node, exponent))
        return self.postfix(node)

    def base(self) -> Node:
        r"""Parse the base of a logarithm; in \log_25 it is one digit, since an argument follows."""
        digit = _ONE_DIGIT_BASE.match(self.text, self.at)
        if digit:
            self.at = digit.end()
            return rational(int(digit.group()))
        return self.argument() if self.peek() == "{" else self.script()

    def function_argument(self) -> Node:
        r"""Parse a bracket, or a product up to the next bracket or function (\sin 2x \cos x)."""
        next_ = self.peek()
        if next_ in ("(", "[", "{", "|"):
            node = self.operand()
            return self.raised(node) if next_ == "{" and self.take("^") else node
        node = self.signed(self.power)
        while self.starts_factor() and self.peek() not in "([{|":
            command, word = self.next_command(), _WORD.match(self.text, self.at)
            if command and not command.startswith(("frac", "sqrt", "pi")):
                if command not in vocabulary.SYMBOLS:
                    break
            elif word and word.group() in vocabulary.FUNCTIONS:
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
        if len(args) != vocabulary.NUM_ARGUMENTS.get(name, len(args)):
            raise NoFormula
        return self.postfix(Node(name, tuple(args)))

    # Symbols

    def decorated(self, decoration: str) -> Node:
        inner = self.argument_text()
        if not re.fullmatch(r"[A-Za-z0-9\\_{} ]+", inner):
            raise NoFormula
        inner = re.sub(r"^\\([ij])math$", r"\1", inner)
        return self.symbol(f"{decoration} {inner.strip()}")

    def upright(self) -> Node:
        r"""Parse what \mathrm{} and the like hold: a function, a constant or a symbol."""
        inner = self.argument_text()
        if inner in vocabulary.FUNCTIONS:
            return self.function(vocabulary.FUNCTIONS[inner])
        if inner in vocabulary.OF_A_LIST:
            return self.call(inner)
        if not re.fullmatch(r"[A-Za-z]", inner) or inner in vocabulary.UNIT_LETTERS:
            raise NoFormula
        return Node("constant", value=inner) if inner in "ei" else self.symbol(inner)

    def symbol(self, name: str) -> Node:
        node = self.primed(Node("symbol", value=name))
        applied = _INTEGER_IN_PARENTHESES.match(self.text, self.at)
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
        plain = _SUBSCRIPT_NOISE.sub("", self.argument_text())
        if not plain:
            raise NoFormula
        return Node("symbol", value=f"{node.value}_{plain}")

    def primed(self, node: Node) -> Node:
        while self.take("'", "^{\\prime}", "^\\prime", "^{'}"):
            if node.kind != "symbol":
                raise NoFormula
            node = Node("symbol", value=f"{node.value}'")
        return node
