"""Calls between two interpreters: the tests' and the program's, over a pair of pipes.

The tests run in an interpreter that never executes the program. What they call, and every object
of the program that is not plain data, is a `Remote` there. Plain data (numbers, strings, containers
of the standard library, arrays) is copied. What arrives is data: the decoder constructs the types
in `CONSTRUCTORS` alone, so no message makes the receiver run code that the sender chose.

Operators between a `Remote` and plain data compare its plain value, if it has one, in the tests'
interpreter. So an object of the program cannot claim to equal a number. Standard library only.
"""

import array
import builtins
import collections
import contextlib
import datetime
import decimal
import fractions
import io
import operator
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# A copy of the builtins for the functions below, which a program may change.
globals()["__builtins__"] = dict(vars(builtins))

MAX_BYTES = 1 << 30
LENGTH_BYTES = 8
EXCEPTIONS = {
    each.__name__: each
    for each in vars(builtins).values()
    if isinstance(each, type) and issubclass(each, BaseException)
}
# Types whose objects are copied by their own reduction, beside those that pickle knows.
COPIED = (
    *(complex, range, slice, bytearray, array.array, decimal.Decimal, fractions.Fraction),
    *(collections.deque, collections.Counter, collections.OrderedDict, collections.defaultdict),
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
)
TYPES = (*COPIED, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, object)
REBUILT = ("_remote", "_own", "_same", "_record", "_array", "_exception", "_numpy")
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
ORDER = ("eq", "ne", "lt", "le", "gt", "ge")


class Gone(BaseException):
    """The other interpreter has ended."""


class Refused(Exception):
    """A message is malformed, or asks for what the receiver does not do."""


class Remote:
    """An object in the other interpreter, by its number there."""

    __slots__ = ("__weakref__", "_number")

    def __init__(self, number: int) -> None:
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return _ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if sys.stdout is sys.__stdout__ and sys.stdin is sys.__stdin__:
            return _ask("call", self, args, kwargs)
        # Tests that replace the standard streams mean those of the program.
        given = None if sys.stdin is sys.__stdin__ else sys.stdin.read()
        result, output = _ask("call with streams", self, args, kwargs, given)
        sys.stdout.write(output)
        return result

    def __bool__(self) -> bool:
        return bool(_ask("bool", self))

    def __hash__(self) -> int:
        return hash(_ask("hash", self))

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask("iter", self))

    def __setstate__(self, state: Any) -> None:
        raise Refused("a message sets the state of an object")

    def __instancecheck__(self, instance: Any) -> bool:
        return _ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return _ask("issubclass", subclass, self) is True

    def __deepcopy__(self, memo: dict) -> Any:
        return _ask("deepcopy", self)


class _Iterator(Remote):
    __slots__ = ()

    def __iter__(self) -> "_Iterator":
        return self

    def __next__(self) -> Any:
        return _ask("next", self)


class _Coroutine(Remote):
    """A coroutine that the other interpreter runs to its end when this one awaits it."""

    __slots__ = ()

    def send(self, _: Any) -> Any:
        raise StopIteration(_ask("await", self))

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
    return lambda self, *args: _ask(name, self, *args)


def _compare(name: str) -> Callable[..., Any]:
    """Return a comparison that is decided here unless both objects are the program's."""
    local = getattr(operator, name)

    def compare(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote):
            return _ask(name, self, other)
        plain = _ask("plain", self)
        return NotImplemented if isinstance(plain, Remote) else local(plain, other)

    return compare


def _operate(name: str, swapped: bool) -> Callable[..., Any]:
    """Return an operator; with plain data it gives another object of the program, or it fails."""

    def operate(self: Remote, other: Any) -> Any:
        result = _ask(name, *((other, self) if swapped else (self, other)))
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


class _Peer:
    """This interpreter's end of the pipes, and the objects that the other one knows by number."""

    def __init__(self, source: int, target: int, strict: bool) -> None:
        self.source, self.target, self.strict = source, target, strict
        self.exported: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.classes: dict[int, type[BaseException]] = {}
        self.notes: set[str] = set()
        self.gone = False

    def number(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.exported.append(value)  # stays alive, so its id stays its own
            self.numbers[id(value)] = len(self.exported) - 1
        return self.numbers[id(value)]


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
    return _peer


def serve(names: dict[str, Any], note: Callable[[BaseException], str]) -> None:
    """Do what the other interpreter asks until it has ended.

    Args:
        names: the program's names, of which the other one is told first.
        note: returns a word to send with an exception, such as "violation".
    """
    OPERATIONS["values"] = lambda wanted: [names[name] for name in wanted]
    try:
        _send([n for n in names if type(n) is str and not (n[:2] == "__" == n[-2:])])
        while True:
            _answer(_receive(), note)
    except Gone:
        return


def names() -> list[str]:
    """Return the names in the other interpreter, once the program has ended there.

    Raises:
        Gone: the other interpreter has ended.
    """
    received = _receive()
    if type(received) is not list or not all(type(name) is str for name in received):
        raise _broken()
    return received


def ask(operation: str, *args: Any) -> Any:
    """Let the other interpreter do one of `OPERATIONS`; return its result or raise its exception.

    Raises:
        Gone: the other interpreter has ended.
    """
    return _ask(operation, *args)


def _ask(operation: str, *args: Any) -> Any:
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
        before = _dump(args[1:]) if operation == "call" else b""
        result = OPERATIONS[operation](*args)
        changed = args[1:] if before and _dump(args[1:]) != before else None
        reply = _dump(("returned", result, changed))
    except Gone:
        raise
    except BaseException as error:
        reply = _dump(("raised", _Raised(error), note(error)))
    flush()
    _write(reply)


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
        merged = {key: _update(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(merged)
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


class _Raised:
    """An exception that is sent as such."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Encoder(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, Remote):
            return _own, (_number(value),)
        if kind is _Raised:
            return _reduce_exception(value.error)
        if kind in COPIED or value in _GLOBALS_BY_ID:
            return NotImplemented
        if isinstance(value, type) and issubclass(value, BaseException):
            return _reduce_class(value)
        if isinstance(value, BaseException):
            return _reduce_exception(value)
        return _by_value(value, kind) or (_remote, (_peer.number(value), _kind(value)))


class _Identities:
    """A set of objects by identity."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.ids = {id(value) for value in values}

    def __contains__(self, value: Any) -> bool:
        return id(value) in self.ids


def _by_value(value: Any, kind: type) -> tuple | None:
    """Return a reduction to plain data, or None for an object that stays where it is."""
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "dtype"):
        if value.dtype.kind not in "biufcSU":
            return None
        if not hasattr(value, "flags") or kind.__name__ != "ndarray":
            return _same, (value.item(),)
        return _numpy, (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, int):
        return int, (int.__index__(value),)
    if isinstance(value, float):
        return float, (float.__float__(value),)
    if isinstance(value, str):
        return str, (str.__str__(value),)
    if isinstance(value, bytes):
        return bytes, (bytes.__getitem__(value, slice(None)),)
    if isinstance(value, tuple):
        fields = getattr(kind, "_fields", ())
        return (_record, (kind.__name__, fields, tuple(value))) if fields else (tuple, ([*value],))
    return _number_value(value) if "numbers" in sys.modules else None


def _number_value(value: Any) -> tuple | None:
    numbers = sys.modules["numbers"]
    for kind, convert in (
        (numbers.Integral, int),
        (numbers.Rational, fractions.Fraction),
        (numbers.Real, float),
        (numbers.Complex, complex),
    ):
        if isinstance(value, kind):
            return _same, (convert(value),)
    return None


def _kind(value: Any) -> str:
    if isinstance(value, _COROUTINE):
        return "coroutine"
    return "iterator" if hasattr(type(value), "__next__") else "object"


async def _coroutine() -> None:
    """Show the type of coroutines."""


_sample = _coroutine()
_COROUTINE = type(_sample)
_sample.close()


def _reduce_class(kind: type[BaseException]) -> Any:
    known = [each.__name__ for each in kind.__mro__ if EXCEPTIONS.get(each.__name__) is each]
    return _exception, (_peer.number(kind), kind.__module__, kind.__qualname__, known[0])


def _reduce_exception(error: BaseException) -> Any:
    kind = type(error)
    known = [each.__name__ for each in kind.__mro__ if EXCEPTIONS.get(each.__name__) is each]
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(kind, error, trace))[-8000:]
    except Exception:  # its __str__ fails
        text = kind.__name__
    args = tuple(each for each in error.args if type(each) in (*TYPES, type(None)))
    class_args = (_peer.number(kind), str(kind.__module__), kind.__qualname__, known[0])
    return _exception, (*class_args, args or (text.strip().rpartition("\n")[2],), text)


def _number(remote: Any) -> int:
    return object.__getattribute__(remote, "_number")


def _remote(number: int, kind: str) -> Remote:
    return KINDS[kind](number)


def _own(number: int) -> Any:
    if type(number) is not int or number < 0:
        raise Refused("no such object")
    return _peer.exported[number]


def _same(value: Any) -> Any:
    return value


def _record(name: str, fields: Sequence[str], values: Sequence[Any]) -> Any:
    return collections.namedtuple(name, fields)(*values)  # type: ignore[misc]


def _array(kind: str, values: Sequence[Any]) -> array.array:
    return array.array(kind, values)


def _numpy(dtype: str, shape: Sequence[int], data: bytes) -> Any:
    import numpy as np

    if np.dtype(dtype).kind not in "biufcSU":
        raise Refused(f"an array of {dtype}")
    return np.frombuffer(data, np.dtype(dtype)).reshape(shape).copy()


def _exception(
    number: int, module: str, name: str, base: str, args: tuple | None = None, text: str = ""
) -> Any:
    """Return an exception class of the other interpreter, or with `args` an exception of it."""
    if module == "builtins" and name in EXCEPTIONS:
        _peer.classes[number] = EXCEPTIONS[name]
    if number not in _peer.classes:
        found = getattr(sys.modules.get(module), name, None)
        known = isinstance(found, type) and issubclass(found, BaseException)
        bases = (found,) if known else (EXCEPTIONS[base],)
        _peer.classes[number] = _Frozen(name, bases, {"__module__": module})  # type: ignore[assignment, arg-type]
    kind = _peer.classes[number]
    if args is None:
        return kind
    error = kind.__new__(kind, *args)
    error.args = args
    error.__cause__ = _InProgram(f"\n{text}")
    return error


class _InProgram(Exception):
    """Shows the traceback of the other interpreter."""


class _Frozen(type):
    """The type of classes that a message cannot change."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise Refused("a message changes a class")


class _Constructor:
    """A function or type that a message may call but cannot change."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a message changes a constructor")


# Types written in Python could be changed, which would change what their objects equal.
_BUILDERS = [globals()[name] for name in REBUILT]
_GLOBALS: dict[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__qualname__): kind for kind in (*TYPES, *EXCEPTIONS.values())},
    **{
        (kind.__module__, kind.__qualname__): _Constructor(kind)
        for kind in (fractions.Fraction, collections.Counter, *_BUILDERS)
    },
    ("array", "_array_reconstructor"): array._array_reconstructor,  # type: ignore[attr-defined]
}
_GLOBALS_BY_ID = _Identities([*TYPES, *EXCEPTIONS.values(), *_BUILDERS])


class _Decoder(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise Refused(f"{module}.{name} is not data") from None


def _dump(message: Any) -> bytes:
    buffer = io.BytesIO()
    _Encoder(buffer, 5).dump(message)
    return buffer.getvalue()


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
        return _Decoder(io.BytesIO(data)).load()
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
            stream.flush()
        except Exception:  # the program may have closed or replaced it
            continue
