r"""Equality of two formulas, by exact arithmetic or by their values at random points.

Two formulas without symbols are equal if their values are: rational numbers exactly, others to 30
digits relative to their size, so that 1/2006! and 1/2004! differ. Two formulas with symbols are
equal if their values agree at random points (Schwartz, 1980), which decides identities that
simplification does not and needs no rules. Points are real; if too few of them lie in the domain of
both formulas, they are integers (for (-1)^n), and then complex numbers (for formulas with i).

Every operation is bounded: sizes of exponents, digits, and the number of steps. What exceeds a
bound has no value, and is then equal to nothing.
"""

import math
import operator
import random
import threading
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mpmath.ctx_mp import MPContext

from evals.grading.formulas import Node, contains, symbols

CPU_SECONDS = 2.0
DIGITS = 50
_CLOSE = 30  # digits in which equal values agree
_EXTENDED = 2000  # digits; larger values are compared to 30 digits only
_MAX_BITS = 30_000  # of an exact rational number
_POINTS, _ENOUGH = 12, 3  # points tried, and points that suffice
_ENOUGH_OF_STEPS = 8  # points that suffice for functions with steps
_STEPS = ("floor", "ceil", "abs", "max", "min", "gcd", "lcm")
_local = threading.local()


_NO_VALUE = (ArithmeticError, ValueError, RecursionError, MemoryError, TypeError)


class NoValue(ArithmeticError):
    """The formula has no value at this point, or none within the bounds."""


@lru_cache(4096)
def exact(node: Node) -> Fraction | None:
    """Return the value of a formula if it follows from integers by rational operations."""
    try:
        return _exact(node)
    except (NoValue, ZeroDivisionError, OverflowError, RecursionError):
        return None


def same(one: Node, other: Node) -> bool:
    """Return whether two formulas are equal wherever both have a value."""
    left, right = exact(one), exact(other)
    if left is not None and right is not None:
        return left == right
    try:
        return _agree(one, other, _near)
    except _NO_VALUE:
        return False


def proportional(one: Node, other: Node) -> int:
    """Return the sign of c if `one` = c * `other` everywhere for a constant c; 0 if there is none.

    A complex or unknown sign is 1.
    """
    ratios: list[Any] = []

    def agree(left: Any, right: Any) -> bool:
        if not left or not right:
            return not left and not right
        ratios.append(left / right)
        return _near(ratios[0], ratios[-1])

    try:
        if symbols(one) != symbols(other) or not _agree(one, other, agree) or not ratios:
            return 0
    except _NO_VALUE:
        return 0
    return -1 if ratios[0].real < 0 else 1


@lru_cache(4096)
def constant(node: Node) -> Fraction | float | None:
    """Return the real value of a formula without symbols to 40 digits; None if there is none.

    Infinity is a float.
    """
    value = exact(node)
    if value is not None or symbols(node):
        return value
    try:
        real = _Evaluation({}, "real").settled(node)
        if _context().isinf(real):
            return float(real)
        if abs(_exponent(real)) > 5000:
            return None
        return Fraction(_context().nstr(real, 40))
    except _NO_VALUE:
        return None


def _agree(one: Node, other: Node, agree: Callable[[Any, Any], bool]) -> bool:
    """Return whether the values agree at enough points of the first domain that has enough."""
    names = sorted(symbols(one) | symbols(other))
    steps = any(contains(node, kind) for node in (one, other) for kind in _STEPS)
    enough = (_ENOUGH_OF_STEPS if steps else _ENOUGH) if names else 1
    started = time.thread_time()
    for domain in ("real", "integer", "complex"):
        generator, found = random.Random(20), 0
        for number in range(_POINTS if names else 1):
            if time.thread_time() - started > CPU_SECONDS:
                raise NoValue
            point = {name: _draw(generator, domain, number) for name in names}
            try:
                evaluation = _Evaluation(point, domain)
                values = evaluation.settled(one), evaluation.settled(other)
            except _NO_VALUE:
                continue
            if not agree(*values):
                return False
            found += 1
            if found == enough:
                return True
    return False


def _draw(generator: random.Random, domain: str, number: int) -> Any:
    if domain == "integer":
        return generator.randint(2, 40)
    size = math.exp(generator.uniform(-1.6, 2.5))  # 0.2 to 12
    if domain == "complex":
        return complex(min(size, 2.0), generator.uniform(0.2, 2.0))
    # Signs make |x| and x differ; the first and every other point is positive, for logarithms.
    negative = number % 2 and (number == 1 or generator.random() < 0.5)
    return -size if negative else size


def _near(one: Any, other: Any) -> bool:
    """Return whether two settled values agree in 30 digits, and those above 1e15 to 1e-20."""
    if one == other:
        return True
    size = max(abs(one), abs(other))
    if size == math.inf:
        return False
    if 15 < _exponent(size) < _EXTENDED:
        return bool(abs(one - other) < _context().mpf("1e-20"))
    return bool(abs(one - other) <= size * _context().mpf(10) ** -_CLOSE)


def _exponent(value: Any) -> int:
    """Return the number of digits before the point, negative for zeros behind it."""
    return int(_context().mag(value) * 0.30103) if value else 0


def _context() -> Any:
    if not hasattr(_local, "context"):
        _local.context = MPContext()
        _local.context.dps = DIGITS
    return _local.context


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _exact(node: Node) -> Fraction:
    if node.kind == "number":
        return node.value  # type: ignore[return-value]
    if node.kind not in _EXACT:
        raise NoValue
    value = _EXACT[node.kind](*[_exact(arg) for arg in node.args])
    if _bits(value) > _MAX_BITS:
        raise NoValue
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent.denominator == 2:
            return _exact_power(_exact_root(base, Fraction(2)), exponent * 2)
        raise NoValue
    if abs(exponent) * max(1, _bits(base) - 1) > _MAX_BITS or (not base and exponent <= 0):
        raise NoValue
    return base**exponent.numerator


def _exact_root(value: Fraction, order: Fraction) -> Fraction:
    if order != 2 or value < 0:
        raise NoValue
    above, below = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if above * above != value.numerator or below * below != value.denominator:
        raise NoValue
    return Fraction(above, below)


def _natural(value: Fraction) -> int:
    if value.denominator != 1 or not 0 <= value <= 3000:
        raise NoValue
    return value.numerator


def _integers(values: tuple[Any, ...]) -> list[int]:
    if any(int(value) != value for value in values):
        raise NoValue
    return [int(value) for value in values]


_SIMPLE: Mapping[str, Callable[..., Any]] = {
    "add": operator.add,
    "neg": operator.neg,
    "mul": operator.mul,
    "div": operator.truediv,
}
_EXACT: Mapping[str, Callable[..., Fraction]] = {
    **_SIMPLE,
    "pow": _exact_power,
    "root": _exact_root,
    "abs": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "factorial": lambda a: Fraction(math.factorial(_natural(a))),
    "binomial": lambda a, b: Fraction(math.comb(_natural(a), _natural(b))),
    "max": lambda *values: max(values),
    "min": lambda *values: min(values),
    "gcd": lambda *values: Fraction(math.gcd(*_integers(values))),
    "lcm": lambda *values: Fraction(math.lcm(*_integers(values))),
}


class _Evaluation:
    """Values of formulas at one point of one domain."""

    def __init__(self, point: Mapping[str, Any], domain: str) -> None:
        self.domain, self.context = domain, _context()
        self.point = {name: self.context.convert(value) for name, value in point.items()}

    def settled(self, node: Node) -> Any:
        """Return the value with enough digits for `_near`, and rounding errors of zero as zero."""
        value, context = self.value(node), self.context
        if not value or context.isinf(value):
            return value
        digits = _exponent(value)
        if -DIGITS // 2 <= digits <= 15 or digits >= _EXTENDED:
            return value
        context.dps = DIGITS + abs(digits) if digits > 0 else 3 * DIGITS
        try:
            again = self.value(node)
        finally:
            context.dps = DIGITS
        return context.zero if digits < 0 and abs(again) < abs(value) * 1e-10 else again

    def value(self, node: Node) -> Any:
        context = self.context
        if node.kind == "number":
            fraction = node.value
            return context.mpf(fraction.numerator) / fraction.denominator  # type: ignore[attr-defined]
        if node.kind == "symbol":
            return self.point[str(node.value)]
        if node.kind == "constant":
            return self.known(str(node.value))
        args = [self.value(arg) for arg in node.args]
        result = self.call(str(node.value), args) if node.kind == "call" else self.apply(node, args)
        if self.domain != "complex" and result.imag:
            raise NoValue
        if context.isnan(result):
            raise NoValue
        return result

    def known(self, name: str) -> Any:
        if name == "i" and self.domain != "complex":
            raise NoValue
        context = self.context
        return {
            "pi": +context.pi,
            "e": +context.e,
            "i": context.mpc(0, 1),
            "inf": context.inf,
        }[name]

    def apply(self, node: Node, args: list[Any]) -> Any:
        context, kind = self.context, node.kind
        if kind in _SIMPLE:
            return _SIMPLE[kind](*args)
        if kind == "pow":
            return self.power(*args)
        if kind == "root":
            return self.root(*args)
        if kind == "abs":
            return abs(args[0])
        if kind == "degrees":
            return args[0] * context.pi / 180
        if kind in ("floor", "ceil", "max", "min"):
            if any(getattr(value, "imag", 0) for value in args):
                raise NoValue
            real = [value.real for value in args]
            return {"floor": context.floor, "ceil": context.ceil, "max": max, "min": min}[kind](
                *real
            )
        if kind == "factorial":
            return self.factorial(args[0])
        if kind == "binomial":
            above, below = args
            return self.factorial(above) / self.factorial(below) / self.factorial(above - below)
        raise NoValue

    def factorial(self, value: Any) -> Any:
        if abs(value) > 1e6:
            raise NoValue
        return self.context.gamma(value + 1)

    def power(self, base: Any, exponent: Any) -> Any:
        context = self.context
        if base == 0:
            if exponent.real <= 0 or getattr(exponent, "imag", 0):
                raise NoValue
            return base
        if context.isinf(base) or context.isinf(exponent):
            raise NoValue
        if abs(exponent) > 1e7 or abs(exponent * context.log(abs(base))) > 1e7:
            raise NoValue
        if self.domain != "complex" and base < 0 and exponent != int(exponent):
            raise NoValue
        return base**exponent

    def root(self, value: Any, order: Any) -> Any:
        context = self.context
        if order == 0:
            raise NoValue
        if not getattr(value, "imag", 0) and value.real < 0 and order == int(order.real):
            if int(order.real) % 2:
                return -self.power(-value, 1 / order)
            if self.domain != "complex":
                raise NoValue
        if order == 2:
            return context.sqrt(value)
        return self.power(value, 1 / order)

    def call(self, name: str, args: list[Any]) -> Any:
        context, value = self.context, args[0]
        if abs(value) > 1e9 and name not in ("log", "ln", "lg", "sgn"):
            raise NoValue
        if name.startswith("f"):  # any function: f and f' are different ones
            return context.sin(value * 13 / 10 + len(name)) + 2
        if name in ("log", "ln", "lg"):
            # A logarithm without a base is a natural one, as in most of the sets.
            base = args[1] if len(args) > 1 else context.mpf(10) if name == "lg" else None
            if value == 0 or (self.domain != "complex" and value.real < 0):
                raise NoValue
            return context.log(value) if base is None else context.log(value) / context.log(base)
        if name == "sgn":
            return context.sign(value)
        if name in ("exp", "sinh", "cosh", "tanh", "coth") and abs(value) > 1e6:
            raise NoValue
        function = getattr(context, name.replace("arc", "a"))
        if name in ("arcsin", "arccos", "acosh", "atanh") and self.domain != "complex":
            inside = value >= 1 if name == "acosh" else abs(value) <= 1
            if not inside:
                raise NoValue
        return function(value)
