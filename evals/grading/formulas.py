"""A formula as a tree of operations.

`evals.grading.formula_parser` reads it from a text, and `evals.grading.evaluation` evaluates it.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True)
class Node:
    """A formula. `kind` is the operation, `args` its operands, `value` a number or a name."""

    kind: str
    args: tuple["Node", ...] = ()
    value: object = None


def rational(value: int | Fraction) -> Node:
    """Return the formula that is a rational number."""
    return Node("number", value=Fraction(value))


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
