"""Parts of messages: the nearest name, what to do about a full disk, text that can be written."""

import errno
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

NEAR = 0.5
"""Share of common letters from which a name is near another one (`difflib`)."""
_MOST_LISTED = 25  # names in a message
_ALSO_CALLED = {
    "learning_rate": "lr",
    "k": "num_samples",
    "samples": "num_samples",
    "beta": "mismatch_reward",
    "kappa": "temperature",
    "scale": "reward_scale",
    "steps": "max_steps",
    "num_train_epochs": "epochs",
    "batch_size": "global_batch_size",
    "max_length": "sequence_length",
    "max_seq_length": "sequence_length",
    "lr_scheduler_type": "schedule",
    "warmup": "warmup_steps",
    "r": "rank",
}
"""Settings by the names that they have in papers and other trainers."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: "did you mean 'x'?", with the name nearest to `word`.

    The names that begin with `word` are given together. Where no name is near, all are listed.
    """
    wanted, names = str(word).lower(), {name.lower(): name for name in known}
    longer = [repr(name) for lower, name in names.items() if wanted and lower.startswith(wanted)]
    if 1 < len(longer) <= _MOST_LISTED:
        return f"did you mean {', '.join(longer[:-1])} or {longer[-1]}?"
    nearest = get_close_matches(wanted, names, n=1, cutoff=NEAR)
    if nearest:
        return f"did you mean {names[nearest[0]]!r}?"
    listed = [*map(repr, names.values())]
    more = f", ... ({len(listed)} in all)" if len(listed) > _MOST_LISTED else ""
    return f"use one of {', '.join(listed[:_MOST_LISTED])}{more}" if listed else "there is none"


def key_hint(name: str, near: Collection[str], known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown key: "did you mean 'x'?".

    Args:
        name: the last part of the key.
        near: the names in its place.
        known: all dotted keys. Where `name` is not simply misspelt, one that ends with it is meant:
            "max_steps" is "train.max_steps", and "learning_rate" is "train.optim.lr".
    """
    if nearly(name, near):
        return did_you_mean(name, near)
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    usual = name.lower().replace("-", "_")
    for end in (_ALSO_CALLED.get(usual), usual, nearly(usual, ends)):
        if end and len(ends.get(end, ())) == 1:
            return f"did you mean {ends[end][0]!r}?"
    return did_you_mean(name, near)


def counted(count: int, noun: str) -> str:
    """Return a number of things in words: "1 trial", "2 trials"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def nearly(word: str, known: Iterable[str]) -> str | None:
    """Return the name that differs from `word` in a letter or two at most; None if none does."""
    return next(iter(get_close_matches(word, list(known), n=1, cutoff=0.8)), None)


def repeated(values: Iterable[T]) -> list[T]:
    """Return each value that occurs more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


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
