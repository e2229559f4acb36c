"""Objects of another interpreter, as if they were here.

A `Remote` forwards what is done with it. Operators between it and plain data are decided here: they
compare its plain value, if it has one. So an object of a program cannot claim to equal a number.
`wire` sets `ask`. Standard library only.
"""

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

# A copy of the builtins for the functions below, which a program may change.
globals()["__builtins__"] = dict(vars(builtins))

BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
ORDER = ("eq", "ne", "lt", "le", "gt", "ge")


class Refused(Exception):
    """A message is malformed, or asks for what the receiver does not do."""


def ask(operation: str, *args: Any) -> Any:
    """Let the other interpreter do something; `wire` puts its own function in this place."""
    raise NotImplementedError(operation)


class Remote:
    """An object in the other interpreter, by its number there."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int) -> None:
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        ask("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it where it is, with the standard streams that are set here."""
        if sys.stdout is sys.__stdout__ and sys.stdin is sys.__stdin__:
            return ask("call", self, args, kwargs)
        # Tests that replace the standard streams mean those of the program.
        given = None if sys.stdin is sys.__stdin__ else sys.stdin.read()
        result, output = ask("call with streams", self, args, kwargs, given)
        sys.stdout.write(output)
        return result

    def __bool__(self) -> bool:
        return bool(ask("bool", self))

    def __hash__(self) -> int:
        return hash(ask("hash", self))

    def __iter__(self) -> Iterator[Any]:
        return iter(ask("iter", self))

    def __setstate__(self, state: Any) -> None:
        raise Refused("a message sets the state of an object")

    def __instancecheck__(self, instance: Any) -> bool:
        return ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return ask("issubclass", subclass, self) is True

    def __deepcopy__(self, memo: dict) -> Any:
        return ask("deepcopy", self)


class _Iterator(Remote):
    __slots__ = ()

    def __iter__(self) -> "_Iterator":
        return self

    def __next__(self) -> Any:
        return ask("next", self)


class _Coroutine(Remote):
    """A coroutine that the other interpreter runs to its end when this one awaits it."""

    __slots__ = ()

    def send(self, _: Any) -> Any:
        raise StopIteration(ask("await", self))

    def throw(self, *_: Any) -> Any:
        raise StopIteration(None)

    def close(self) -> None:
        """Do nothing: the other interpreter ends with the tests."""

    def __await__(self) -> Iterator[Any]:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


KINDS = {"object": Remote, "iterator": _Iterator, "coroutine": _Coroutine}


def _forward(name: str) -> Callable[..., Any]:
    return lambda self, *args: ask(name, self, *args)


def _compare(name: str) -> Callable[..., Any]:
    """Return a comparison that is decided here unless both objects are the program's."""
    local = getattr(operator, name)

    def compare(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote):
            return ask(name, self, other)
        plain = ask("plain", self)
        return NotImplemented if isinstance(plain, Remote) else local(plain, other)

    return compare


def _operate(name: str, swapped: bool) -> Callable[..., Any]:
    """Return an operator; with plain data it gives another object of the program, or it fails."""

    def operate(self: Remote, other: Any) -> Any:
        result = ask(name, *((other, self) if swapped else (self, other)))
        if isinstance(result, Remote) or isinstance(other, Remote):
            return result
        raise TypeError(f"{name} of an object of the program and plain data is not plain data here")

    return operate


for _name in ("len", "getitem", "setitem", "delitem", "contains", "str", "repr", "enter", "exit"):
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in ORDER:
    setattr(Remote, f"__{_name}__", _compare(_name))
for _name in BINARY:
    setattr(Remote, f"__{_name}__", _operate(_name, swapped=False))
    setattr(Remote, f"__r{_name}__", _operate(_name, swapped=True))
