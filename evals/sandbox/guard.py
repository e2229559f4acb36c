"""Python's wall around a program: an audit hook that refuses, and one that sees the program's end.

In: the folder that stays writable, those that may be read. Out: hooks in this interpreter, which
nothing takes back. Standard library only. For the events see
docs.python.org/3/library/audit_events.html.
"""

import builtins
import os
import sys
from collections.abc import Callable, Sequence

from evals.sandbox import isolation as walls

# The functions below find Python's own names here, where a program's changes do not reach them.
globals()["__builtins__"] = dict(vars(builtins))
Path = int | str | bytes | os.PathLike

END = "sandbox.end"  # the event by which `child` tells that the program has ended

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
        # what shows the variables of the sandbox itself
        "gc.get_objects",
        "gc.get_referrers",
        "gc.get_referents",
        "sys._current_frames",
        "sys._current_exceptions",
        "sys.settrace",
        "sys.setprofile",
    ]
)
# Events that change files, with the places of each path and of the folder it is relative to.
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
    """Refuses what the tables name, changes outside of `home`, reads outside of `readable` too.

    Both are real paths.

    Returns:
        the events refused so far, which the hook goes on to fill.
    """
    refused: list[str] = []
    fixed, hidden, wrongly_opened = _judges(home, readable)
    # Variables, because a program could give the module's names other values.
    always, listing, writing = REFUSED_EVENTS, READING_EVENTS, WRITING_EVENTS
    local = walls.AF_UNIX

    def forbidden(event: str, arguments: tuple) -> bool:
        if event in always or event.startswith("ctypes."):
            return True
        if event == "open":
            return wrongly_opened(*arguments)
        if event == "socket.__new__":
            return arguments[1] != local
        if event in listing:
            return arguments[0] is not None and hidden(arguments[0])
        return any(
            fixed(arguments[path], None if folder is None else arguments[folder])
            for path, folder in writing.get(event, ())
        )

    def guard(event: str, arguments: tuple) -> None:
        try:
            refuse = forbidden(event, arguments)
        except OSError:  # a path that can't be followed
            refuse = True
        if refuse:
            refused.append(event)
            raise PermissionError(f"the sandbox does not allow {event} {arguments!r:.200}")

    sys.addaudithook(guard)
    return refused


def _judges(home: str, readable: Sequence[str]) -> tuple[Callable[..., bool], ...]:
    """Whether a path may not be changed; whether it may not be read; or not be opened like this."""
    for_writing = WRITING_FLAGS
    realpath, fsdecode, join = os.path.realpath, os.fsdecode, os.path.join
    own = (home, *walls.DEVICES), (home + "/",)
    places = tuple(readable)
    below = tuple(f"{folder}/" for folder in places)

    def real(path: Path, folder: int | None) -> str:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        elif folder is not None and folder >= 0:
            path = join(f"/proc/self/fd/{folder}", fsdecode(path))
        return realpath(fsdecode(path))

    def fixed(path: Path, folder: int | None = None) -> bool:
        place = real(path, folder)
        return place not in own[0] and not place.startswith(own[1])

    def hidden(path: Path) -> bool:
        place = real(path, None)
        return place not in own[0] + places and not place.startswith(own[1] + below)

    def wrongly_opened(path: Path, _: object, flags: int) -> bool:
        if isinstance(path, int):
            return False
        return fixed(path) if flags & for_writing else hidden(path)

    return fixed, hidden, wrongly_opened


def report_end_of(outcome: int, secret: bytes) -> None:
    """Writes `secret` to `outcome` when the function that called this one raises the event `END`.

    Another function, such as the program's, that raises it is not heard; and after this returns, no
    variable that a program can reach holds the secret.
    """
    write, frame = os.write, sys._getframe
    caller = sys._getframe(1)

    def witness(event: str, _: tuple) -> None:
        if event == END and frame(1) is caller:
            write(outcome, secret)

    sys.addaudithook(witness)
