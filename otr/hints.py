"""Parts of messages: the nearest name, what to do about a full disk, text that can be written."""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: "did you mean 'x'?", with the name nearest to `word`."""
    nearest = get_close_matches(word, list(known), n=1, cutoff=0)
    return f"did you mean {nearest[0]!r}?" if nearest else "there is none"


def nearly(word: str, known: Iterable[str]) -> str | None:
    """Return the name that differs from `word` in a letter or two at most; None if none does."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.8)), None)


def some_of(names: Iterable[str], most: int = 30) -> str:
    """Return names for a message, separated by commas; of more than `most`, the first ones."""
    known = list(names)
    rest = f" and {len(known) - most:,} more" if len(known) > most else ""
    return ", ".join(known[:most]) + rest


def full_disk(error: str, path: str = "") -> str:
    """Return what to do about an error of a full disk; empty for another error."""
    if os.strerror(errno.ENOSPC) not in error:
        return ""
    where = f"the disk of {path}" if path else "the disk"
    return f"{where} is full: free space and run the same command again, or give another --output"


def encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: half of a character (a lone surrogate) is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
