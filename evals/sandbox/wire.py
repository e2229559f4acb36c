"""Calls between two interpreters: the tests' and the program's, over a pair of pipes.

The tests run in an interpreter that never executes the program. They call the program's functions
here; what these return is copied if it is plain data, else it is a `Remote`. Standard library only.
"""

import builtins
import collections
import contextlib
import io
import operator
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from evals.sandbox import encoding, remote
from evals.sandbox.encoding import Objects, Raised
from evals.sandbox.encoding import dump as _dump
from evals.sandbox.remote import BINARY, ORDER, Refused

# A copy of the builtins for the functions below, which a program may change.
globals()["__builtins__"] = dict(vars(builtins))

MAX_BYTES = 1 << 30
_LIGHT = (type(lambda: 0), type, type(sys), int, float, bool, type(None))
LENGTH_BYTES = 8


class Gone(BaseException):
    """The other interpreter has ended."""


class _Peer:
    """This interpreter's end of the pipes, and what it has heard."""

    def __init__(self, source: int, target: int, strict: bool) -> None:
        self.source, self.target, self.strict = source, target, strict
        self.notes: set[str] = set()
        self.gone = False


_peer: _Peer = None  # type: ignore[assignment]


def connect(source: int, target: int, *, strict: bool) -> _Peer:
    """Set the pipes of this interpreter.

    Args:
        source: the descriptor to read from.
        target: the descriptor to write to.
        strict: whether the other interpreter may do no more than call, and read public names of,
            the objects that it was given.
    """
    global _peer
    _peer = _Peer(source, target, strict)
    encoding.use(Objects())
    return _peer


def serve(names: dict[str, Any], note: Callable[[BaseException], str]) -> None:
    """Do what the other interpreter asks until it has ended.

    Args:
        names: the program's names. The other one is told first: functions, classes, modules and
            constants with their values, the names of others alone.
        note: returns a word to send with an exception, such as "violation".
    """
    OPERATIONS["values"] = lambda wanted: [names[name] for name in wanted]
    try:
        public = [n for n in names if type(n) is str and not (n[:2] == "__" == n[-2:])]
        light = {n: names[n] for n in public if isinstance(names[n], _LIGHT)}
        _send((light, [name for name in public if name not in light]))
        while True:
            _answer(_receive(), note)
    except Gone:
        return


def warm_up() -> None:
    """Call a function over a pipe to this interpreter, so that forks of it do that faster.

    The interpreter rewrites code that it executes often. A fork that rewrites it copies its pages.
    """
    source, target = os.pipe()
    connect(source, target, strict=False)
    for _ in range(64):
        _send(("do", "call", (warm_up, ([1, 2.5, "a", None, {"b": (True,)}],), {})))
        _, operation, (_, *args) = _receive()
        _answer(("do", operation, (lambda given: given, *args)), lambda error: "")
        _, result, _ = _receive()
        _update(args[0][0], result)
    for descriptor in (source, target):
        os.close(descriptor)


def values(used: Callable[[str], bool]) -> dict[str, Any]:
    """Return the values of the names that are used, once the program has ended.

    Raises:
        Gone: the other interpreter has ended.
    """
    try:
        light, others = _receive()
        found = {str(name): value for name, value in light.items() if used(str(name))}
        others = [str(name) for name in others if used(str(name))]
    except (TypeError, ValueError, AttributeError):
        raise _broken() from None
    if others:
        found.update(zip(others, ask("values", others), strict=True))
    return found


def ask(operation: str, *args: Any) -> Any:
    """Let the other interpreter do one of `OPERATIONS`; return its result or raise its exception.

    Raises:
        Gone: the other interpreter has ended.
    """
    _send(("do", operation, args))
    while True:
        message = _receive()
        if type(message) is tuple and message[:1] == ("do",):
            _answer(message, lambda error: "")
            continue
        try:
            kind, result, rest = message
        except (TypeError, ValueError):
            raise _broken() from None
        if kind == "raised" and isinstance(result, BaseException):
            _peer.notes.update(str(rest).split())
            raise result
        if kind != "returned":
            raise _broken()
        return _with_changes(args, result, rest)


def _broken() -> Gone:
    _peer.gone = True
    return Gone("the program sent something else than an answer")


def _answer(message: Any, note: Callable[[BaseException], str]) -> None:
    try:
        _, operation, args = message
        if _peer.strict:
            _check(operation, args)
        changeable = operation == "call" and (args[2] or not all(map(_is_constant, args[1])))
        before = _dump(args[1:]) if changeable else b""
        result = OPERATIONS[operation](*args)
        changed = args[1:] if before and _dump(args[1:]) != before else None
        reply = _dump(("returned", result, changed))
    except Gone:
        raise
    except BaseException as error:
        reply = _dump(("raised", Raised(error), note(error)))
    flush()
    _write(reply)


def _is_constant(value: Any) -> bool:
    return value is None or type(value) in (int, float, str, bool, bytes)


def _check(operation: str, args: Sequence[Any]) -> None:
    """Refuse what could reach the names and frames of the tests.

    Raises:
        Refused: the operation is not one of the few.
    """
    readable = operation == "getattr" and type(args[0]).__module__ == "__main__"
    public = readable and type(args[1]) is str and not args[1].startswith("_")
    if operation not in CALLED and not public:
        raise Refused(f"the program may not do {operation} with an object of the tests")


def _with_changes(args: Sequence[Any], result: Any, changed: Any) -> Any:
    """Change the arguments of a call here as the call did there; return its result."""
    if changed is None:
        return result
    for old, new in zip(args[1], changed[0], strict=True):
        if _update(old, new) is old and result is new:
            result = old
    _update(args[2], changed[1])
    return result


def _update(old: Any, new: Any) -> Any:
    """Return `old` with the contents of `new` if it can be changed, else `new`."""
    if type(old) is not type(new):
        return new
    if isinstance(old, list | collections.deque):
        merged = [_update(*pair) for pair in zip(old, new, strict=False)] + list(new)[len(old) :]
        old.clear()
        old.extend(merged)
    elif isinstance(old, dict):
        entries = {key: _update(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(entries)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    elif isinstance(old, bytearray):
        old[:] = new
    else:
        return new
    return old


def _plain(value: Any) -> Any:
    """Return the value of a subclass of a container as that container, else the object."""
    for kind in (list, dict, set):
        if isinstance(value, kind):
            return kind(value)
    return value


def _call_with_streams(function: Any, args: tuple, kwargs: dict, given: str | None) -> Any:
    output, before = io.StringIO(), sys.stdin
    try:
        if given is not None:
            sys.stdin = io.StringIO(given)
        with contextlib.redirect_stdout(output):
            return function(*args, **kwargs), output.getvalue()
    finally:
        sys.stdin = before


def _run_coroutine(value: Any) -> Any:
    import asyncio

    return asyncio.run(value)


def _copy(value: Any) -> Any:
    import copy

    return copy.deepcopy(value)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "call with streams": _call_with_streams,
    "plain": _plain,
    "await": _run_coroutine,
    "deepcopy": _copy,
    "enter": lambda value: value.__enter__(),
    "exit": lambda value, *args: value.__exit__(*args),
    **{
        each.__name__: each
        for each in (getattr, setattr, bool, hash, iter, next, isinstance, issubclass)
    },
    **{each.__name__: each for each in (len, str, repr)},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem", "contains")},
    **{name: getattr(operator, name) for name in ORDER},
    **{name: getattr(operator, f"{name}_" if name in ("and", "or") else name) for name in BINARY},
}
# What a program may do with the objects that the tests gave it.
CALLED = {"call", "iter", "next", "len", "bool", "getitem", "contains", "eq", "hash", "plain"}


remote.ask = ask


def _send(message: Any) -> None:
    flush()
    _write(_dump(message))


def _write(data: bytes) -> None:
    view = memoryview(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    try:
        while view:
            view = view[os.write(_peer.target, view) :]
    except OSError:
        _peer.gone = True
        raise Gone("the other interpreter has ended") from None


def _receive() -> Any:
    length = int.from_bytes(_read(LENGTH_BYTES), "big")
    if length > MAX_BYTES:
        raise _broken()
    data = _read(length)
    try:
        return encoding.load(data)
    except (Gone, MemoryError):
        raise
    except BaseException:
        raise _broken() from None


def _read(length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = os.read(_peer.source, min(length - len(data), 1 << 20))
        if not part:
            _peer.gone = True
            raise Gone("the program has ended")
        data += part
    return bytes(data)


def flush() -> None:
    """Flush the standard streams, also those that the program closed or replaced."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:  # the program may have closed or replaced it
            continue
