"""Messages between two interpreters as bytes, and back.

Plain data (numbers, strings, containers of the standard library, arrays) is copied. Other objects
are numbers in a table of their owner. What arrives is data: the decoder calls what is in `_GLOBALS`
alone, none of which a message can change, so no message makes the receiver run code that the sender
chose, or changes what plain data equals. Standard library only.
"""

import array
import builtins
import collections
import datetime
import decimal
import fractions
import io
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from evals.sandbox.remote import KINDS, Refused, Remote

# A copy of the builtins for the functions below, which a program may change.
globals()["__builtins__"] = dict(vars(builtins))

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
_WIRE = __file__.replace("encoding", "wire")
REBUILT = ("_remote", "_own", "_same", "_record", "_array", "_exception", "_numpy")


class Objects:
    """The objects that the other interpreter knows by number, and its exception classes."""

    def __init__(self) -> None:
        self.exported: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.classes: dict[int, type[BaseException]] = {}

    def number(self, value: Any) -> int:
        """Return the number of an object, which stays alive from then on."""
        if id(value) not in self.numbers:
            self.exported.append(value)
            self.numbers[id(value)] = len(self.exported) - 1
        return self.numbers[id(value)]


_objects = Objects()


def use(objects: Objects) -> None:
    """Set the table that messages refer to."""
    global _objects
    _objects = objects


class Raised:
    """An exception that is sent as such."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Encoder(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, Remote):
            return _own, (_number(value),)
        if kind is Raised:
            return _reduce_exception(value.error)
        if kind in COPIED or value in _GLOBALS_BY_ID:
            return NotImplemented
        if isinstance(value, type) and issubclass(value, BaseException):
            return _reduce_class(value)
        if isinstance(value, BaseException):
            return _reduce_exception(value)
        return _by_value(value, kind) or (_remote, (_objects.number(value), _kind(value)))


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
    return _exception, (_objects.number(kind), kind.__module__, kind.__qualname__, known[0])


def _reduce_exception(error: BaseException) -> Any:
    kind = type(error)
    known = [each.__name__ for each in kind.__mro__ if EXCEPTIONS.get(each.__name__) is each]
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == _WIRE:
        trace = trace.tb_next
    try:
        text = "".join(traceback.format_exception(kind, error, trace))[-8000:]
    except Exception:  # its __str__ fails
        text = kind.__name__
    args = tuple(each for each in error.args if type(each) in (*TYPES, type(None)))
    class_args = (_objects.number(kind), str(kind.__module__), kind.__qualname__, known[0])
    return _exception, (*class_args, args or (text.strip().rpartition("\n")[2],), text)


def _number(remote: Any) -> int:
    return object.__getattribute__(remote, "_number")


def _remote(number: int, kind: str) -> Remote:
    return KINDS[kind](number)


def _own(number: int) -> Any:
    if type(number) is not int or number < 0:
        raise Refused("no such object")
    return _objects.exported[number]


def _same(value: Any) -> Any:
    return value


def _record(name: str, fields: Sequence[str], values: Sequence[Any]) -> Any:
    return collections.namedtuple(name, fields)(*values)


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
        _objects.classes[number] = EXCEPTIONS[name]
    if number not in _objects.classes:
        found = getattr(sys.modules.get(module), name, None)
        known = isinstance(found, type) and issubclass(found, BaseException)
        bases = (found,) if known else (EXCEPTIONS[base],)
        _objects.classes[number] = _Frozen(name, bases, {"__module__": module})  # type: ignore[assignment, arg-type]
    kind = _objects.classes[number]
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
    _call: Callable[..., Any]

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


def dump(message: Any) -> bytes:
    """Return a message as bytes."""
    buffer = io.BytesIO()
    _Encoder(buffer, 5).dump(message)
    return buffer.getvalue()


def load(data: bytes) -> Any:
    """Return the message in `data`.

    Raises:
        Exception: it is malformed.
    """
    return _Decoder(io.BytesIO(data)).load()
