"""The Python guard: an audit hook that refuses events, and one that notices the program's end.

The hooks stay for the life of the interpreter. A program that finds a gap in the interpreter can
get around them; see `isolation` for what the kernel then still refuses. Standard library only.
Events: docs.python.org/3/library/audit_events.html.
"""

import builtins
import os
import sys
from collections.abc import Callable, Sequence

from evals.sandbox import isolation

# A copy of the builtins for the functions below, out of reach of a program that changes them.
globals()["__builtins__"] = dict(vars(builtins))
Path = int | str | bytes | os.PathLike

END = "sandbox.end"  # the event that `child` raises after the last test

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
        "resource.setrlimit",
        # would show the sandbox's own variables
        "gc.get_objects",
        "gc.get_referrers",
        "gc.get_referents",
        "sys._current_frames",
        "sys._current_exceptions",
        "sys.settrace",
        "sys.setprofile",
    ]
)
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
        readable: real paths of folders and files that may be read.

    Returns:
        the names of the refused events, a list that the hook extends.
    """
    refused: list[str] = []
    unwritable, unreadable, wrongly_opened = _path_checks(home, readable)
    # Local variables, because a program could assign other values to the module's names.
    always, reading, writing = REFUSED_EVENTS, READING_EVENTS, WRITING_EVENTS
    local_family = isolation.AF_UNIX

    def forbidden(event: str, arguments: tuple) -> bool:
        if event in always or event.startswith("ctypes."):
            return True
        if event == "open":
            return wrongly_opened(*arguments)
        if event == "socket.__new__":
            return arguments[1] != local_family
        if event in reading:
            return arguments[0] is not None and unreadable(arguments[0])
        return any(
            unwritable(arguments[path], None if folder is None else arguments[folder])
            for path, folder in writing.get(event, ())
        )

    def guard(event: str, arguments: tuple) -> None:
        try:
            refuse = forbidden(event, arguments)
        except OSError:  # a path that cannot be resolved
            refuse = True
        if refuse:
            refused.append(event)
            raise PermissionError(f"the sandbox does not allow {event} {arguments!r:.200}")

    sys.addaudithook(guard)
    return refused


def _path_checks(home: str, readable: Sequence[str]) -> tuple[Callable[..., bool], ...]:
    """Return the checks `unwritable`, `unreadable` and `wrongly_opened`, which use no globals."""
    for_writing = WRITING_FLAGS
    realpath, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join
    writable = home, *isolation.DEVICES
    readable = *writable, *readable
    below_writable = f"{home}/"
    below_readable = tuple(f"{folder}/" for folder in readable)

    def real(path: Path, folder: int | None) -> str:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        elif folder is not None and folder >= 0:
            path = join(f"/proc/self/fd/{folder}", fsdecode(path))
        return realpath(fsdecode(path))

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


def send_at_end(outcome: int, secret: bytes) -> None:
    """Write `secret` to the descriptor `outcome` when the caller's frame raises the event `END`.

    The event is ignored if another frame raises it, such as one of the program. After this returns,
    only the hook holds the secret, and a program has no reference to an audit hook.
    """
    write, frame = os.write, sys._getframe
    caller = sys._getframe(1)

    def send(event: str, _: tuple) -> None:
        if event == END and frame(1) is caller:
            write(outcome, secret)

    sys.addaudithook(send)
