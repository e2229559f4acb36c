"""What is to reach a service that may be away: kept on disk, sent in order by one thread.

In: entries, dicts that JSON can hold. Out: calls of `send`. Beside each other lie
`NAME.jsonl`, every entry on a line; `NAME.sent`, how many bytes of it have arrived; and
`NAME.rejected.jsonl`, the entries that the service will never take, each with the reason. What was
on its way when the process died is sent again, so an entry sent twice must change nothing.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Condition, Thread
from typing import Any

Entry = dict[str, Any]
Line = tuple[int, Entry]  # its bytes, what it says
Send = Callable[[list[Entry]], int]
"""Sends the first of the entries, or more, and returns how many. Raises `Away` when the same again
may succeed later, and anything else when the first entry never will."""

_PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between tries, the last one again and again
_READ_BYTES = 1_000_000  # how much is handed to `send` at once, about


class Away(Exception):
    """The service can't be reached, or is too busy."""


class Outbox:
    """The entries of one run; of one process at a time."""

    def __init__(self, path: Path, send: Send, service: str, tell: Callable[[str], None]) -> None:
        self.path, self.service, self.tell = path, service, tell
        self._send = send
        self._changed = Condition()
        self._end = _whole(path)
        self._marker = path.with_suffix(".sent")
        self._sent = _position(self._marker, self._end)
        self._file = path.open("ab")
        self._away_since: float | None = None
        self._closed = False
        self._told: set[str] = set()
        self._thread = Thread(target=self._run, name="outbox", daemon=True)

    @property
    def rejected(self) -> Path:
        """Where the entries are kept that were not taken."""
        return self.path.with_suffix(".rejected.jsonl")

    def start(self) -> None:
        """Begin to send, first what an earlier process left."""
        self._thread.start()

    def put(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry; it is on disk when this returns."""
        line = json.dumps(entry).encode() + b"\n"
        with self._changed:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._end += len(line)
            self._changed.notify_all()

    def waiting(self) -> int:
        """How many entries have not arrived."""
        with self.path.open("rb") as file:
            file.seek(self._sent)
            return sum(1 for _ in file)

    def wait(self, patience: float) -> bool:
        """Wait until all has arrived, or the service was away for so many seconds; whether all has.

        While entries go through it waits for as long as that takes.
        """
        began = time.monotonic()
        with self._changed:
            while self._sent < self._end and self._thread.is_alive():
                left = 1.0
                if self._away_since is not None:
                    left = max(began, self._away_since) + patience - time.monotonic()
                    if left <= 0:
                        return False
                self._changed.wait(min(left, 1.0))
            return self._sent >= self._end

    def close(self, patience: float) -> int:
        """Wait as `wait` does, and end; returns how many entries are left."""
        self.wait(patience)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._away_since is None:  # else a request may hang: it ends with the process
            self._thread.join()
        self._file.close()
        return self.waiting()

    def _run(self) -> None:
        tries, lines = 0, list[Line]()
        while lines := self._next(lines):
            try:
                count = self._send([entry for _, entry in lines])
            except Away as error:
                self._is_away(error)
                self._pause(_PAUSES[min(tries, len(_PAUSES) - 1)])
                tries += 1
                continue
            except Exception as error:
                self._reject(lines[0][1], error)
                count = 1
            tries = 0
            self._arrived(sum(size for size, _ in lines[:count]))
            del lines[:count]

    def _next(self, read: list[Line]) -> list[Line]:
        """What has been read, or where that is sent, what has come since; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._sent < self._end)
            if self._closed:
                return []
            if read:
                return read
            with self.path.open("rb") as file:
                file.seek(self._sent)
                return [(len(line), json.loads(line)) for line in file.readlines(_READ_BYTES)]

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, seconds)

    def _is_away(self, error: Away) -> None:
        with self._changed:
            first = self._away_since is None
            if first:
                self._away_since = time.monotonic()
            self._changed.notify_all()
        if first:
            self.tell(f"{self.service} is away, what is for it waits in {self.path} ({error})")

    def _arrived(self, size: int) -> None:
        scratch = self._marker.with_suffix(".sent.new")
        scratch.write_text(str(self._sent + size))
        scratch.replace(self._marker)
        with self._changed:
            back = self._away_since is not None
            self._sent += size
            self._away_since = None
            self._changed.notify_all()
        if back:
            self.tell(f"{self.service} is back")

    def _reject(self, entry: Entry, error: Exception) -> None:
        reason = without_login(f"{type(error).__name__}: {error}")
        with self.rejected.open("a") as file:
            file.write(json.dumps({"reason": reason, "entry": entry}) + "\n")
        if reason not in self._told:  # one line a cause: a run that was deleted refuses hundreds
            self._told.add(reason)
            told = json.dumps(entry)[:100]
            self.tell(f"{self.service} refused {told} ({reason[:200]}); kept in {self.rejected}")


def without_login(text: str) -> str:
    """An address, or a text with addresses, without the name and password that may be in them."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _whole(path: Path) -> int:
    """Cut off a line that a dying process left unfinished; returns the size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.read_bytes() if path.exists() else b""
    size = written.rfind(b"\n") + 1
    if size < len(written):
        os.truncate(path, size)
    return size


def _position(marker: Path, end: int) -> int:
    """How much of the file has arrived; none of it where the marker belongs to another file."""
    try:
        sent = int(marker.read_text())
    except (OSError, ValueError):  # not there, or emptied by a power cut: what arrives twice is one
        return 0
    return sent if sent <= end else 0
