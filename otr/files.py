"""Atomic writes of local files: a reader finds the old content or all of the new one.

A killed process may leave a `NAME.*.tmp` beside the file; it is never read.
"""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replace a file's content.

    Raises:
        OSError: the file cannot be written; it keeps its old content.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        partial.write_bytes(content)
        publish(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, content: str) -> None:
    """Replace a file's content with UTF-8 text; see `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file's content with indented JSON; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def publish(partial: str | Path, path: str | Path) -> None:
    """Flush a finished file to disk, then rename it to `path` on the same file system.

    Raises:
        OSError: the file cannot be flushed or renamed; `path` keeps its old content.
    """
    with open(partial, "rb") as file:
        os.fsync(file.fileno())  # otherwise a crash can keep the new name and lose the content
    os.replace(partial, path)


def existing_parent(path: str | Path) -> Path:
    """Return a path, or the nearest directory above it that exists."""
    found = Path(path)
    while not found.exists():
        found = found.parent
    return found
