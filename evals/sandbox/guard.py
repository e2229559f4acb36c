"""The Python guard: an audit hook that refuses events, and one that notices the program's end.

The hooks stay for the life of the interpreter. A program that finds a gap in the interpreter can
get around them; see `isolation` for what the kernel then still refuses. Standard library only.
Events: docs.python.org/3/library/audit_events.html.
"""

import builtins
import ctypes
import os
import posixpath
import sys
from collections.abc import Callable, Sequence
from types import FrameType, FunctionType, ModuleType, SimpleNamespace
from typing import Any

from evals.sandbox import isolation

# A copy of the builtins for the functions below, out of reach of a program that changes them.
globals()["__builtins__"] = dict(vars(builtins))
Path = int | str | bytes | os.PathLike

END = "sandbox.end"  # the event that `child` raises when the program has ended
AF_UNIX, SOCK_STREAM = 1, 1

REFUSED_EVENTS = frozenset(
    [
        "os.fork",
        "os.forkpty",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.kill",
        "os.killpg",
        "subprocess.Popen",
        "pty.spawn",
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "resource.prlimit",
        # would show the hooks' own variables
        "gc.get_objects",
        "gc.get_referrers",
        "gc.get_referents",
        "sys._current_frames",
        "sys._current_exceptions",
    ]
)
# Events that libraries may raise, but not the program: numerical libraries call C functions.
LIBRARY_EVENTS = "ctypes."
UNAUDITED = ("memmove", "memset", "cast")  # functions of ctypes that raise no event of their own
DO_UNAUDITED = "ctypes.sandbox"
# Events that give code a file name, the second argument, which must not be a library's.
NAMING_EVENTS = ("compile", "code.__new__")
# Commands that make the kernel send signals to another process: F_SETOWN, F_SETSIG, F_SETOWN_EX;
# FIOSETOWN, SIOCSPGRP, TIOCSTI
OWNING_EVENTS = {"fcntl.fcntl": (8, 10, 15), "fcntl.ioctl": (0x8901, 0x8902, 0x5412)}
# Events that change files: the index in the arguments of each path, and of its folder.
WRITING_EVENTS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.lchown": ((0, None),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
    "sqlite3.connect": ((0, None),),
}
READING_EVENTS = frozenset(["os.listdir", "os.scandir"])
WRITING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install(home: str, readable: Sequence[str]) -> list[str]:
    """Install the hook that refuses the events above, and access to other files than those given.

    Args:
        home: real path of the folder in which files may be changed and read.
        readable: real paths of folders and files that may be read; modules in them are libraries.

    Returns:
        the names of the refused events, a list that the hook extends.
    """
    refused: list[str] = []
    # Local variables, because a program could assign other values to the module's names.
    checks = _event_checks(home, readable)
    always, by_libraries, unaudited = REFUSED_EVENTS, LIBRARY_EVENTS, DO_UNAUDITED
    from_library, frame, originals = checks[by_libraries], sys._getframe, _replace_unaudited()

    def guard(event: str, arguments: tuple) -> None:
        try:
            if event in always:
                refuse = True
            elif event.startswith(by_libraries):
                refuse = not from_library(frame(1))
            else:
                refuse = event in checks and checks[event](frame(1), *arguments)
        except OSError:  # a path that cannot be resolved
            refuse = True
        if refuse:
            refused.append(event)
            raise PermissionError(f"the sandbox does not allow {event} {arguments!r:.200}")
        if event == unaudited:
            name, given, results = arguments
            results.append(originals[name](*given))

    sys.addaudithook(guard)
    return refused


def _event_checks(home: str, readable: Sequence[str]) -> dict[str, Callable[..., bool]]:
    """Return for each event that is refused at times a function of frame and arguments.

    The one of `LIBRARY_EVENTS` is of the frame alone, and true for a library.
    """
    unwritable, unreadable, wrongly_opened = _path_checks(home, readable)
    from_library, is_library = _caller_checks(readable)
    local_family, stream = AF_UNIX, SOCK_STREAM

    def names_library(frame: FrameType, _: Any, name: Any, *__: Any) -> bool:
        return is_library(name) and not from_library(frame)

    def opens_socket(_: FrameType, __: Any, family: int, kind: int, ___: int) -> bool:
        return family != local_family or kind & 0xF != stream  # only the ends of a pair

    def lists(_: FrameType, path: Path | None) -> bool:
        return path is not None and unreadable(path)

    def writes(places: Sequence[tuple[int, int | None]]) -> Callable[..., bool]:
        return lambda _, *arguments: any(
            unwritable(arguments[path], None if folder is None else arguments[folder])
            for path, folder in places
        )

    def owns(commands: Sequence[int]) -> Callable[..., bool]:
        return lambda _, __, command, *___: command in commands

    return {
        LIBRARY_EVENTS: from_library,
        "open": lambda _, *arguments: wrongly_opened(*arguments),
        "socket.__new__": opens_socket,
        "marshal.loads": lambda frame, _: not from_library(frame),  # code with any file name
        **dict.fromkeys(NAMING_EVENTS, names_library),
        **dict.fromkeys(READING_EVENTS, lists),
        **{event: writes(places) for event, places in WRITING_EVENTS.items()},
        **{event: owns(commands) for event, commands in OWNING_EVENTS.items()},
    }


def _replace_unaudited() -> dict[str, Callable[..., Any]]:
    """Let the functions of ctypes that raise no event raise one; return the originals.

    The program cannot reach the originals: the hook calls them.
    """
    convert = ctypes._cast  # type: ignore[attr-defined]
    originals: dict[str, Callable[..., Any]] = {
        "memmove": ctypes.memmove,
        "memset": ctypes.memset,
        "cast": lambda given, kind: convert(given, given, kind),
    }

    def audited(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            results: list[Any] = []
            sys.audit(DO_UNAUDITED, name, arguments, results)
            return results[0]

        call.__module__ = ctypes.__name__
        return call

    for name in originals:
        setattr(ctypes, name, audited(name))
    for module in (ctypes, sys.modules["_ctypes"]):
        for name in UNAUDITED:
            vars(module).pop(f"_{name}", None)
            vars(module).pop(f"_{name}_addr", None)
    return originals


def _caller_checks(readable: Sequence[str]) -> tuple[Callable[..., bool], Callable[..., bool]]:
    """Return `from_library`, whether a frame belongs to a library, and the same for a file name."""
    # The names of modules' files follow sys.path, which may contain symbolic links.
    folders = (*readable, *(path for path in sys.path if os.path.isabs(path)))
    inside = tuple(f"{folder}/" for folder in folders)
    own = ("<frozen importlib", os.path.dirname(ctypes.__file__), os.path.dirname(__file__))

    def is_library(name: Any) -> bool:
        name = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        return isinstance(name, str) and name.startswith((*inside, *own))

    def from_library(frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code.co_filename.startswith(own[1:]):
            frame = frame.f_back
        return frame is not None and is_library(frame.f_code.co_filename)

    return from_library, is_library


def _path_checks(home: str, readable: Sequence[str]) -> tuple[Callable[..., bool], ...]:
    """Return the checks `unwritable`, `unreadable` and `wrongly_opened`, which use no globals."""
    for_writing = WRITING_FLAGS
    paths = _private_copy(posixpath)
    realpath, fsdecode, join = paths["realpath"], os.fsdecode, paths["join"]
    writable = home, *isolation.DEVICES
    readable = *writable, *readable
    below_writable = f"{home}/"
    below_readable = tuple(f"{folder}/" for folder in readable)

    def real(path: Path, folder: int | None) -> str:
        if isinstance(path, int):
            return str(realpath(f"/proc/self/fd/{path}"))
        name = fsdecode(path)
        if folder is not None and folder >= 0:
            name = join(f"/proc/self/fd/{folder}", name)
        return str(realpath(name))

    def unwritable(path: Path, folder: int | None = None) -> bool:
        target = real(path, folder)
        return target not in writable and not target.startswith(below_writable)

    def unreadable(path: Path) -> bool:
        target = real(path, None)
        return target not in readable and not target.startswith(below_readable)

    def wrongly_opened(path: Path, _: object, flags: int) -> bool:
        if isinstance(path, int):
            return False
        return unwritable(path) if flags & for_writing else unreadable(path)

    return unwritable, unreadable, wrongly_opened


def _private_copy(module: ModuleType) -> dict[str, Any]:
    """Return the functions of a module, with copies of `os` and of the builtins for their own use.

    A program that replaces `os.lstat`, say, then changes nothing for them.
    """
    names = dict(vars(module), os=SimpleNamespace(**vars(os)))
    names["__builtins__"] = dict(vars(builtins))
    for name, value in vars(module).items():
        if isinstance(value, FunctionType) and value.__module__ == module.__name__:
            copy = FunctionType(value.__code__, names, name, value.__defaults__, value.__closure__)
            copy.__kwdefaults__ = value.__kwdefaults__
            names[name] = copy
    return names


def send_at_end(outcome: int, secret: bytes) -> None:
    """Write `secret` to the descriptor `outcome` when the caller's frame raises the event `END`.

    The event is ignored if another frame raises it, such as one of the program. After this returns,
    only the hook holds the secret, and a program has no reference to an audit hook.
    """
    write, frame, end = os.write, sys._getframe, END
    caller = sys._getframe(1)

    def send(event: str, _: tuple) -> None:
        if event == end and frame(1) is caller:
            write(outcome, secret)

    sys.addaudithook(send)
